"""Wavelets: one wave of a learned width and place for each unit."""

import torch
from torch import Tensor

from ...registry import BASES
from .base import Basis


class Wavelet(Basis):
    """phi(x) = w psi((x - t) / s): coefficients w, t and log s, which keeps s positive.

    At the start w and t are drawn from N(0, 1), and s is 1.
    """

    count, scales = 3, 1

    def draw(self, *shape: int) -> Tensor:
        coefficients = torch.randn(*shape, self.count)
        coefficients[..., 2] = 0
        return coefficients

    def evaluate(self, x: Tensor, coefficients: Tensor) -> Tensor:
        weight, place, log_width = coefficients.unbind(-1)
        return weight * self.wave((x - place) * torch.exp(-log_width))

    def wave(self, x: Tensor) -> Tensor:
        """Computes psi(x) elementwise."""
        raise NotImplementedError(f'{type(self).__name__} needs a method wave(x)')


@BASES.register('dog')
class DOG(Wavelet):
    """The derivative of a Gaussian: psi(x) = -x exp(-x^2 / 2)."""

    def wave(self, x: Tensor) -> Tensor:
        return -x * torch.exp(-0.5 * x * x)


@BASES.register('morlet')
class Morlet(Wavelet):
    """Morlet's wavelet, real: psi(x) = cos(5 x) exp(-x^2 / 2)."""

    def wave(self, x: Tensor) -> Tensor:
        return torch.cos(5 * x) * torch.exp(-0.5 * x * x)
