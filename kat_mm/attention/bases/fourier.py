"""Trigonometric series."""

from collections.abc import Iterator

from torch import Tensor

from ...checks import check_int
from ...registry import BASES
from .base import LinearBasis


@BASES.register('fourier')
class Fourier(LinearBasis):
    """phi(x) = sum_{g=1..G} a_g cos(g x) + b_g sin(g x) (KArAt, arXiv 2503.10632, section 3).

    Coefficients are a_1, b_1, a_2, b_2 and so on. Multiples of the angle come by the angle sum
    identities from cos(x) and sin(x).

    Args:
        grid_size: G. The paper's best is 3 for tiny and small networks, and 1 for base.
    """

    def __init__(self, grid_size: int = 3):
        self.grid_size = check_int('basis.grid_size', grid_size)
        self.count = 2 * grid_size

    kernel = 'fourier'

    @classmethod
    def of_kernel(cls, count: int, parameter: float) -> 'Fourier':
        return cls(count // 2)

    def functions(self, x: Tensor) -> Iterator[Tensor]:
        cos, sin = first = x.cos(), x.sin()
        yield from first
        for _ in range(self.grid_size - 1):
            cos, sin = cos * first[0] - sin * first[1], sin * first[0] + cos * first[1]
            yield cos
            yield sin

    def slopes(self, x: Tensor) -> Iterator[Tensor]:
        functions = self.functions(x)
        for g, (cos, sin) in enumerate(zip(functions, functions, strict=True), start=1):
            yield -g * sin
            yield g * cos
