"""Finds the MLPs of a model by their structure."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..rational.coefficients import FUNCTIONS
from ..rational.layer import GroupRational
from .activation import CONTAINERS, find_activations
from .report import ALREADY

WEIGHTED = nn.Linear, _ConvNd
Activations = dict[nn.Module, bool]


@dataclass(frozen=True)
class MLP:
    """The parts of a module that computes last(act(first(x))).

    Attributes:
        first: a linear layer or a 1x1 convolution.
        act: the activation.
        last: another layer of the kind of `first`.
    """

    first: nn.Module
    act: nn.Module
    last: nn.Module

    @property
    def channels(self) -> tuple[int, int, int]:
        """Input, hidden and output channels."""
        return *_channels(self.first), _channels(self.last)[1]

    @property
    def channel_dim(self) -> int:
        """The dimension of the channels, counted from the last one."""
        return _channel_dim(self.first)


def find_mlps(model: nn.Module) -> dict[nn.Module, tuple[str, MLP | str]]:
    """Returns the name and the parts of each MLP, and for what is almost one the reason instead.

    Each is the innermost module that is one, or the module around it where that is a Sequential.
    """
    found = {}
    for name, module, mlp in _find('', model, find_activations(model)):
        found.setdefault(module, (name, mlp))  # a shared module has several names
    return found


def _find(name: str, module: nn.Module, activations: Activations) -> list[tuple]:
    found = []
    for child_name, child in module.named_children():
        found += _find(f'{name}.{child_name}' if name else child_name, child, activations)
    mlp = _match(module, activations)
    if mlp is None:
        return found
    if len(found) == 1:
        _, inner, inner_mlp = found[0]
        if mlp == inner_mlp and type(inner).__name__ == 'Sequential':  # torch's or mmengine's
            found = []
    return found or [(name, module, mlp)]


def _match(module: nn.Module, activations: Activations) -> MLP | str | None:
    """The parts of an MLP, why a module that has such parts is none, or None for any other."""
    layers = list(dict.fromkeys(_layers(module)))
    weighted = [layer for layer in layers if isinstance(layer, WEIGHTED)]
    dense = [layer for layer in weighted if not _is_depthwise(layer)]
    acts = [layer for layer in layers if layer in activations or isinstance(layer, GroupRational)]
    if len(dense) < 2 or not all(map(_is_pointwise, dense)):
        return None

    sizes = [_channels(layer) for layer in dense]
    (inputs, hidden), *_, (last_inputs, _) = sizes
    has_two_firsts = len(sizes) == 3 and sizes[0] == sizes[1] and inputs != hidden
    if acts and (hidden == 2 * last_inputs or has_two_firsts):
        return 'it is gated: its activation multiplies other hidden channels'
    if any(before[1] != after[0] for before, after in pairwise(sizes)):
        return None
    if any(isinstance(act, GroupRational) for act in acts):
        return ALREADY
    if not acts:
        functions = [f.__name__ for f in vars(module).values() if inspect.isroutine(f)]
        names = [name for name in functions if name in FUNCTIONS]
        return f'its activation is a function, {names[0]}, and no module' if names else None
    if len(dense) > 2 or len(acts) > 1:
        return (
            'a GR-KAN layer has two linear layers and one activation between them, this one '
            f'{len(dense)} and {len(acts)}'
        )

    (first, last), (act,) = dense, acts
    if not activations[act]:
        return f'its activation, {type(act).__name__}, has parameters of its own'
    if len(set(map(_channel_dim, weighted))) > 1:
        return (
            'it has linear layers and convolutions, so the channels that its activation sees may '
            'be at either dimension'
        )
    return MLP(first, act, last)


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The layers in a module, as deep as there are weights, in the order of their definition."""
    for child in module.children():
        if isinstance(child, WEIGHTED):
            yield child
        elif isinstance(child, CONTAINERS) or any(isinstance(m, WEIGHTED) for m in child.modules()):
            yield from _layers(child)
        else:
            yield child


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, _ConvNd) and 1 < layer.groups == layer.in_channels


def _is_pointwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (layer.groups == 1 == max(layer.kernel_size))


def _channels(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def _channel_dim(layer: nn.Module) -> int:
    return -1 if isinstance(layer, nn.Linear) else -1 - len(layer.kernel_size)
