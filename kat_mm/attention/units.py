"""Layers of learnable univariate functions."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bases import Basis
from .bases.base import mean_square

BASE_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {'identity': lambda x: x, 'silu': F.silu}
Fit = Callable[[Tensor, int], Tensor]  # (has an entry for each token along a dimension, which one)


class Units(NamedTuple):
    """The functions phi_pq of each head, as `UnitLayer.units` gives them for a map of some size."""

    layer: 'UnitLayer'
    coefficients: Tensor
    base_scale: Tensor | None

    def sums(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Computes sum_q w_q phi_pq(x_q): [B, heads, n, p] of x [B, heads, n, q].

        The weight of the addends, [B, 1, 1, q], is 1 where it is not given.
        """
        y = self.layer.basis.sums(x, self.coefficients, weight)
        if self.base_scale is None:
            return y
        base = BASE_FUNCTIONS[self.layer.base](x)
        return y + (base if weight is None else base * weight) @ self.base_scale.mT


class UnitLayer(nn.Module):
    """Learnable functions phi_pq of each head, for sums z_p = sum_q phi_pq(x_q).

    Args:
        num_heads: number of heads.
        outputs, inputs: how many z_p and x_q there are.
        basis: of the functions.
        base: name of a fixed function in `BASE_FUNCTIONS` that each unit adds, with a scale of its
            own.
        basis_scales: units scale what the basis gives, too.
        variance: of z at the start, for x of N(0, 1); None leaves the coefficients as drawn.
    """

    def __init__(
        self,
        num_heads: int,
        outputs: int,
        inputs: int,
        basis: Basis,
        base: str | None = None,
        basis_scales: bool = False,
        variance: float | None = None,
    ):
        super().__init__()
        self.basis, self.base, self.variance = basis, base, variance
        shape = num_heads, outputs, inputs
        self.coefficients = nn.Parameter(torch.empty(*shape, basis.count))
        self.base_scale = nn.Parameter(torch.empty(shape)) if base else None
        self.basis_scale = nn.Parameter(torch.empty(shape)) if basis_scales else None
        self.reset_parameters()

    def mean_square(self) -> float:
        """Computes E[phi(x)^2] of units with coefficients as drawn, for x of N(0, 1)."""
        base = mean_square(BASE_FUNCTIONS[self.base]) if self.base else 0.0
        return self.basis.mean_square() + base

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws coefficients as the basis says and scales of base functions from N(0, 1).

        Both are then scaled to the variance, if there is one. Scales of the basis are 1.
        """
        heads, outputs, inputs, _ = self.coefficients.shape
        if self.coefficients.is_meta:
            return
        scale = 1.0
        if self.variance is not None:
            scale = math.sqrt(self.variance / (inputs * self.mean_square()))
        self.coefficients.copy_(self.basis.draw(heads, outputs, inputs))
        self.coefficients[..., : self.basis.scales] *= scale
        if self.base_scale is not None:
            nn.init.normal_(self.base_scale, std=scale)
        if self.basis_scale is not None:
            nn.init.ones_(self.basis_scale)

    def units(self, fit: Fit, *dims: int) -> Units:
        """Returns the functions with those of their dimensions 1 and 2 fitted that are tokens."""
        coefficients, base_scale = self.coefficients, self.base_scale
        if self.basis_scale is not None:
            scales = self.basis_scale[..., None]
            coefficients = torch.cat(
                [
                    coefficients[..., : self.basis.scales] * scales,
                    coefficients[..., self.basis.scales :],
                ],
                -1,
            )
        for dim in dims:
            coefficients = fit(coefficients, dim)
            base_scale = None if base_scale is None else fit(base_scale, dim)
        return Units(self, coefficients, base_scale)
