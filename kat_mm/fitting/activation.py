"""Recognises activations by the values they take, and fits rational functions to them."""

import copy
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ..rational.layer import GroupRational
from .fit import Fit, fit_rational, fit_samples

CONTAINERS = nn.Sequential, nn.ModuleList, nn.ModuleDict
_GRID = torch.linspace(-8, 8, 1601, dtype=torch.float64)
_MINIMAX: dict[tuple, Fit] = {}  # by the values of an activation, which many layers share


def find_activations(model: nn.Module) -> dict[nn.Module, bool]:
    """Returns the modules that compute one function of each element of their input.

    With each stands whether it is a fixed function, without parameters. Modules that compute the
    identity, such as dropout does in evaluation, are not among them.
    """
    found = {}
    for module in model.modules():
        tensors = [*module.parameters(), *module.buffers()]
        if isinstance(module, (*CONTAINERS, GroupRational)) or any(t.numel() > 1 for t in tensors):
            continue
        try:
            y, part = (evaluate_activation(module, x) for x in (_GRID, _GRID[::2]))
            is_one = y.shape == _GRID.shape and torch.allclose(y[::2], part, equal_nan=True)
        except Exception:  # what is no activation may raise anything about such an input
            continue
        if is_one and not torch.allclose(y, _GRID):
            found[module] = not tensors
    return found


@torch.no_grad()
def evaluate_activation(module: nn.Module, x: Tensor) -> Tensor:
    """Computes an activation in evaluation mode, by a copy of it and without its hooks."""
    module = copy.deepcopy(module).to('cpu', torch.float64)
    module.eval()
    return module.forward(x.clone())  # a clone, as it may work in place


def fit_module(
    act: nn.Module,
    order: tuple[int, int],
    interval: float,
    samples: tuple[np.ndarray, np.ndarray] | None,
) -> Fit:
    """Computes the rational that takes the place of an activation.

    It is fitted to samples, (points, counts) as `fit_samples` takes them, or where there are none
    on [-interval, interval].

    Raises:
        ValueError: as `fit_rational`.
    """
    function = partial(evaluate_activation, act)
    if samples is not None:
        return fit_samples(function, *samples, order)
    values = function(torch.linspace(-interval, interval, 1001, dtype=torch.float64))
    key = values.numpy().tobytes(), order, interval
    if key not in _MINIMAX:
        _MINIMAX[key] = fit_rational(function, -interval, interval, order)
    return _MINIMAX[key]
