"""B-splines."""

import math
from collections.abc import Iterator

from torch import Tensor

from ...checks import check_int, check_number
from ...errors import ConfigError
from ...registry import BASES
from .base import LinearBasis


@BASES.register('b_spline')
class BSpline(LinearBasis):
    """phi(x) = sum_i c_i B_i(x), with the G + 3 cubic B-splines on even knots over [-limit, limit].

    All are one cubic spline, moved (KAN, arXiv 2404.19756, section 2.4). Beyond the knots phi is 0.

    Args:
        grid_size: G, the number of intervals.
        limit: half the length of what they cover, in units of the scores.
    """

    def __init__(self, grid_size: int = 3, limit: float = 4.0):
        self.grid_size = check_int('basis.grid_size', grid_size)
        if not 0 < check_number('basis.limit', limit) < math.inf:
            raise ConfigError(f'basis.limit={limit} must be positive and finite')
        self.limit = limit
        self.kernel_parameter = float(limit)
        self.count = grid_size + 3
        self.per_score = grid_size / (2 * limit)  # intervals

    kernel = 'b_spline'

    @classmethod
    def of_kernel(cls, count: int, parameter: float) -> 'BSpline':
        return cls(count - 3, parameter)

    def functions(self, x: Tensor) -> Iterator[Tensor]:
        for _, outer, inner in self._places(x):
            yield (outer**3 - 4 * inner**3) / 6

    def slopes(self, x: Tensor) -> Iterator[Tensor]:
        for place, outer, inner in self._places(x):
            yield place.sign() * (4 * inner**2 - outer**2) * (0.5 * self.per_score)

    def _places(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Computes where x is in each spline, as intervals from its middle, and from its ends."""
        x = (x + self.limit) * self.per_score
        for i in range(self.count):
            place = x - (i - 1)
            distance = place.abs()  # to the middle of the spline, which is 4 intervals wide
            yield place, (2 - distance).clamp(min=0), (1 - distance).clamp(min=0)
