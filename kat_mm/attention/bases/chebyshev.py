"""Chebyshev polynomials."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ...checks import check_int
from ...registry import BASES
from .base import LinearBasis


@BASES.register('chebyshev')
class Chebyshev(LinearBasis):
    """phi(x) = sum_{g=0..G} c_g T_g(tanh x), with Chebyshev's polynomials of the first kind.

    They are bounded on [-1, 1] alone, to which tanh brings the scores.

    Args:
        degree: G.
    """

    def __init__(self, degree: int = 3):
        self.degree = check_int('basis.degree', degree)
        self.count = degree + 1

    kernel = 'chebyshev'

    @classmethod
    def of_kernel(cls, count: int, parameter: float) -> 'Chebyshev':
        return cls(count - 1)

    def functions(self, x: Tensor) -> Iterator[Tensor]:
        x = x.tanh()
        last, this = torch.ones_like(x), x
        yield last
        for _ in range(self.degree):
            yield this
            last, this = this, 2 * x * this - last

    def slopes(self, x: Tensor) -> Iterator[Tensor]:
        x = x.tanh()
        dx = 1 - x * x
        last, this = torch.ones_like(x), x
        last_slope, slope = torch.zeros_like(x), torch.ones_like(x)
        yield last_slope
        for _ in range(self.degree):
            yield slope * dx
            last_slope, slope = slope, 2 * (this + x * slope) - last_slope
            last, this = this, 2 * x * this - last
