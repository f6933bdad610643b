"""Runs a model, or its MLPs alone, to see which layers are called."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..modes import evaluating
from .search import MLP

Samples = Tensor | tuple | dict


@torch.no_grad()
def run(model: nn.Module, samples: Samples) -> None:
    """Calls a model in evaluation mode; its training modes are restored."""
    with evaluating(model):
        if isinstance(samples, dict):
            model(**samples)
        else:
            model(*samples if isinstance(samples, tuple) else (samples,))


def small_input(mlp: MLP) -> Tensor:
    """Makes an input of an MLP, four tokens [1, 4, C] or a map [1, C, 2, ...] of ones."""
    weight, channels = mlp.first.weight, mlp.channels[0]
    sides = -1 - mlp.channel_dim
    return weight.new_ones((1, channels, *[2] * sides) if sides else (1, 4, channels))


@contextmanager
def calls(modules: set[nn.Module]) -> Iterator[set[nn.Module]]:
    """Collects which of some modules are called."""
    seen: set[nn.Module] = set()
    hooks = [m.register_forward_pre_hook(lambda m, _: seen.add(m)) for m in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
