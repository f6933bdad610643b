"""Measures the inputs of the activations of a model."""

from functools import partial

import numpy as np
from torch import nn

from ..errors import DataError
from .runs import Samples, run

BINS = 2000
LEAST = 1.0  # training moves inputs, so ranges have at least [-1, 1]

Histogram = tuple[np.ndarray, np.ndarray]


def input_histograms(
    model: nn.Module, activations: set[nn.Module], samples: Samples
) -> dict[nn.Module, Histogram]:
    """Runs a model in evaluation mode and counts the inputs of the activations that it calls.

    Args:
        model: any; its training modes are restored.
        activations: modules in it.
        samples: the argument of the model, or a tuple or dict of all arguments.

    Returns:
        Points in ascending order, from one end of the inputs' range to the other, and how many
        inputs there were near each.

    Raises:
        DataError: for inputs that are not finite.
    """
    found: dict[nn.Module, list[Histogram]] = {}
    hooks = [
        act.register_forward_pre_hook(partial(_count, found), with_kwargs=True)
        for act in activations
    ]
    try:
        run(model, samples)
    finally:
        for hook in hooks:
            hook.remove()
    return {act: _merged(histograms) for act, histograms in found.items()}


def _count(found: dict, act: nn.Module, args: tuple, kwargs: dict) -> None:
    x = next(iter((*args, *kwargs.values()))).double().cpu().numpy()
    if not np.isfinite(x).all():
        raise DataError(f'samples: an input of {type(act).__name__} is not finite')
    ends = min(x.min(), -LEAST), max(x.max(), LEAST)
    counts, edges = np.histogram(x, BINS, ends)
    points = np.concatenate([edges[:1], (edges[1:] + edges[:-1]) / 2, edges[-1:]])
    found.setdefault(act, []).append((points, np.pad(counts, 1)))


def _merged(histograms: list[Histogram]) -> Histogram:
    """Joins the histograms of several calls."""
    points, counts = map(np.concatenate, zip(*histograms, strict=True))
    order = points.argsort()
    return points[order], counts[order]
