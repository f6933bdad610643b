"""The learned functions phi_pq of Kolmogorov-Arnold attention, and how far a start is from them."""

import copy
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..attention.units import BASE_FUNCTIONS, UnitLayer

CHUNK = 2**22  # values of functions that are there at a time
POINTS = 201


class UnitChange(NamedTuple):
    """How large the functions of a layer are on an interval, and how far from those of a start.

    Functions are counted through outputs and inputs: [heads, functions] each.

    Attributes:
        size: root mean square over the interval.
        start_size: that at the start, None without one.
        distance: that of the difference, None without a start.
    """

    size: Tensor
    start_size: Tensor | None
    distance: Tensor | None

    def by_change(self, head: int) -> Tensor:
        """Returns the functions of a head, the one that changed most first; else the largest."""
        key = self.size if self.distance is None else self.distance
        return key[head].argsort(descending=True)

    def summary(self) -> dict:
        """Returns the numbers of each head."""
        numbers = {'root_mean_square': self.size.mean(1).tolist()}
        if self.distance is not None:
            change = self.distance / self.start_size.clamp(min=torch.finfo(torch.float64).tiny)
            numbers['relative_change'] = {
                'least': change.amin(1).tolist(),
                'median': change.median(1).values.tolist(),
                'most': change.amax(1).tolist(),
            }
        return numbers


def unit_layers(model: nn.Module) -> Iterator[tuple[str, UnitLayer]]:
    """Yields the layers of learnable functions of a model with their names; shared ones once."""
    for name, module in model.named_modules():
        if isinstance(module, UnitLayer):
            yield name, module


def layer_with(layer: UnitLayer, name: str, weights: Mapping[str, Tensor]) -> UnitLayer:
    """Returns a layer with the values that it has in the state dict of a whole model.

    Args:
        layer: the layer.
        name: where it is in the model.
        weights: of the model; those of the layer must have its shapes.
    """
    other = copy.deepcopy(layer)
    other.load_state_dict({key: weights[f'{name}.{key}'] for key in other.state_dict()})
    return other


@torch.no_grad()
def evaluate_units(layer: UnitLayer, x: Tensor, head: int, functions: Tensor) -> Tensor:
    """Computes phi(x) of some functions of a head in fp64: [functions, points] of x [points]."""
    units = layer.units(lambda parameter, dim: parameter)
    x = x.to(units.coefficients.device, torch.float64)
    coefficients = units.coefficients[head].flatten(0, 1)[functions].double()
    y = layer.basis.evaluate(x, coefficients[:, None]).expand(len(functions), len(x))
    if units.base_scale is not None:
        scale = units.base_scale[head].flatten()[functions].double()
        y = y + scale[:, None] * BASE_FUNCTIONS[layer.base](x)
    return y


def unit_change(layer: UnitLayer, start: UnitLayer | None, limit: float) -> UnitChange:
    """Compares all functions of a layer with those of a start on [-limit, limit].

    Args:
        layer: as it is learned.
        start: as it was drawn, if that is known.
        limit: half the length of the interval, in units of the scores.
    """
    x = torch.linspace(-limit, limit, POINTS, dtype=torch.float64)
    heads, outputs, inputs, _ = layer.coefficients.shape
    indices = torch.arange(outputs * inputs, device=layer.coefficients.device)
    sizes = []
    for head in range(heads):
        for part in indices.split(CHUNK // POINTS):
            y = evaluate_units(layer, x, head, part)
            values = [y]
            if start is not None:
                y0 = evaluate_units(start, x, head, part)
                values += [y0, y - y0]
            sizes.append(torch.stack([v.square().mean(-1).sqrt() for v in values]))
    result = torch.cat(sizes, 1).unflatten(1, (heads, -1)).cpu()
    return UnitChange(*result) if start is not None else UnitChange(result[0], None, None)
