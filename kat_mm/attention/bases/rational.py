"""Rational functions."""

from torch import Tensor

from ...checks import check_ints
from ...errors import ConfigError
from ...rational.op import rational
from ...registry import BASES
from .base import Basis


@BASES.register('rational')
class Rational(Basis):
    """phi(x) = P(x) / Q(x) of KAT's activations, Q >= 1; its sums take the compiled op.

    Coefficients are a_0..a_m, then b_1..b_n (KAT, arXiv 2409.10594, section 4).

    Args:
        order: degrees (m, n) of P and Q, each from 1 to 8.
    """

    def __init__(self, order: tuple[int, int] = (5, 4)):
        if len(check_ints('basis.order', order)) != 2 or max(order) > 8:
            raise ConfigError(f'basis.order={tuple(order)} must be two degrees between 1 and 8')
        self.order = tuple(order)
        self.count, self.scales = sum(order) + 1, order[0] + 1

    def evaluate(self, x: Tensor, coefficients: Tensor) -> Tensor:
        m = self.order[0]
        a, b = coefficients[..., : m + 1].unbind(-1), coefficients[..., m + 1 :].unbind(-1)
        numerator = sum(coefficient * x**i for i, coefficient in enumerate(a))
        return numerator / (1 + sum((c * x**j).abs() for j, c in enumerate(b, start=1)))

    def sums(self, x: Tensor, coefficients: Tensor, weight: Tensor | None = None) -> Tensor:
        # The units are the op's groups, of one channel each; what they share goes in front.
        batch, _, rows, _ = x.shape
        x = x.transpose(1, 2).unsqueeze(3).expand(batch, rows, *coefficients.shape[:-1])
        ab = coefficients.flatten(0, -2).split([self.order[0] + 1, self.order[1]], 1)
        y = rational(x.flatten(2), *ab).view(x.shape)
        return (y if weight is None else y * weight.unsqueeze(2)).sum(-1).transpose(1, 2)
