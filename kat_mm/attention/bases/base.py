"""What every basis has in common."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

POINTS = 2001  # of quadrature over the standard normal distribution
DRAWS = 2048  # units for a mean over drawn coefficients


class Basis:
    """Univariate functions phi(x), each with `count` coefficients of its own.

    phi is linear in the first `scales` of them, so that these set its size.

    A new basis is a subclass with a name, in a file of this folder:

        @BASES.register('mine')
        class MyBasis(Basis):
            count, scales = 2, 1

            def evaluate(self, x, c):
                return c[..., 0] * torch.tanh(c[..., 1] * x)

    One that is linear in its coefficients is a `LinearBasis`.

    Attributes:
        count: coefficients of a unit.
        scales: how many of them, the first, multiply all of phi together.
    """

    count: int
    scales: int

    def evaluate(self, x: Tensor, coefficients: Tensor) -> Tensor:
        """Computes phi(x) elementwise, for coefficients [..., count] and x that broadcast."""
        raise NotImplementedError(f'{type(self).__name__} needs a method evaluate(x, coefficients)')

    def sums(self, x: Tensor, coefficients: Tensor, weight: Tensor | None = None) -> Tensor:
        """Computes sum_q w_q phi_pq(x_q) for each head.

        Args:
            x: [B, heads, n, q].
            coefficients: [heads, p, q, count].
            weight: of the addends, [B, 1, 1, q]; all 1 without.

        Returns:
            [B, heads, n, p].
        """
        y = self.evaluate(x.unsqueeze(-2), coefficients.unsqueeze(-4))
        return (y if weight is None else y * weight.unsqueeze(-2)).sum(-1)

    def draw(self, *shape: int) -> Tensor:
        """Draws the coefficients [*shape, count] that units start with: N(0, 1)."""
        return torch.randn(*shape, self.count)

    def mean_square(self) -> float:
        """Computes E[phi(x)^2] over x ~ N(0, 1) and over the coefficients that `draw` gives."""
        x, density = _normal()
        state = torch.default_generator.get_state()
        try:  # of the CPU alone: torch.manual_seed would seed GPUs too
            torch.default_generator.manual_seed(0)
            with torch.device('cpu'):
                coefficients = self.draw(DRAWS, 1).double()
        finally:
            torch.default_generator.set_state(state)
        return (self.evaluate(x, coefficients).square() @ density).mean().item()


class LinearBasis(Basis):
    """A basis whose functions are sums of `count` fixed ones, times the coefficients.

    Attributes:
        kernel: its name in `kernel_functions`, by which it is registered; None without kernels.
        kernel_parameter: what these know of it, but for `count`.
    """

    kernel: str | None = None
    kernel_parameter = 0.0

    @classmethod
    def of_kernel(cls, count: int, parameter: float) -> 'LinearBasis':
        """Returns the basis with so many functions, and with this parameter."""
        raise NotImplementedError(f'{cls.__name__} needs a method of_kernel(count, parameter)')

    @property
    def scales(self) -> int:
        return self.count

    def functions(self, x: Tensor) -> Iterator[Tensor]:
        """Computes the fixed functions of x elementwise, one after the other."""
        raise NotImplementedError(f'{type(self).__name__} needs a method functions(x)')

    def slopes(self, x: Tensor) -> Iterator[Tensor]:
        """Computes the derivatives of the fixed functions at x; kernels need them."""
        raise NotImplementedError(f'{type(self).__name__} needs a method slopes(x)')

    def evaluate(self, x: Tensor, coefficients: Tensor) -> Tensor:
        return sum(y * coefficients[..., i] for i, y in enumerate(self.functions(x)))

    def sums(self, x: Tensor, coefficients: Tensor, weight: Tensor | None = None) -> Tensor:
        # As products of matrices, so that nothing has all of p, q and count at once.
        return sum(
            (y if weight is None else y * weight) @ coefficients[..., i].mT
            for i, y in enumerate(self.functions(x))
        )

    def mean_square(self) -> float:
        return sum(mean_square(lambda x, i=i: [*self.functions(x)][i]) for i in range(self.count))


def mean_square(function: Callable[[Tensor], Tensor]) -> float:
    """Computes E[f(x)^2] over x ~ N(0, 1)."""
    x, density = _normal()
    return (function(x).square() @ density).item()


def _normal() -> tuple[Tensor, Tensor]:
    """Returns even points and the standard normal density there, which sums to 1."""
    x = torch.linspace(-10, 10, POINTS, dtype=torch.float64, device='cpu')
    return x, torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi) * 20 / (POINTS - 1)
