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
        self.count = grid_size + 3

    def functions(self, x: Tensor) -> Iterator[Tensor]:
        x = (x + self.limit) * (self.grid_size / (2 * self.limit))  # in intervals
        for i in range(self.count):
            distance = (x - (i - 1)).abs()  # to the middle of the spline, which is 4 intervals wide
            outer, inner = (2 - distance).clamp(min=0), (1 - distance).clamp(min=0)
            yield (outer**3 - 4 * inner**3) / 6
