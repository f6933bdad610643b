"""The group-rational activation as a module."""

import torch
from torch import Tensor, nn

from .coefficients import Init, initial_coefficients
from .op import rational


class GroupRational(nn.Module):
    """Applies P(x) / Q(x), with learnable P and Q for each group of adjacent channels.

    P(x) = a0 + a1 x + ... + am x^m and Q(x) = 1 + |b1||x| + ... + |bn||x|^n (KAT,
    arXiv 2409.10594, section 4). Input and output have the same shape, with the channels, a
    multiple of `num_groups`, at `channel_dim`. Parameter names and shapes are those of the
    published KAT checkpoints.

    Args:
        num_groups: number of groups, G.
        init: the function that the activation starts as: a name in
            `kat_mm.rational.coefficients.FITS`, or a pair of coefficient sequences
            (a0..am, b1..bn).
        order: degrees (m, n) of P and Q, each from 1 to 8.
        shared_numerator: one numerator for all groups, `weight_numerator` [1, m + 1], as in the
            published models; otherwise [G, m + 1]. `weight_denominator` is [G, n].
        channel_dim: the channel dimension; 1 for maps [B, C, H, W].
        inplace: ignored; lets mm's `act_cfg=dict(type='GroupRational')` take the place of ReLU.

    Raises:
        ValueError: for an unknown init or one that does not fit the order, and in forward for
            channels that num_groups does not divide.
    """

    def __init__(
        self,
        num_groups: int = 8,
        init: Init = 'swish',
        order: tuple[int, int] = (5, 4),
        shared_numerator: bool = True,
        channel_dim: int = -1,
        inplace: bool = False,
    ):
        super().__init__()
        if num_groups < 1:
            raise ValueError(f'num_groups must be at least 1, got {num_groups}')
        if not all(1 <= degree <= 8 for degree in order):
            raise ValueError(f'order (m, n) must lie between 1 and 8, got {tuple(order)}')
        self.num_groups = num_groups
        self.init = init
        self.order = tuple(order)
        self.channel_dim = channel_dim
        rows = 1 if shared_numerator else num_groups
        self.weight_numerator = nn.Parameter(torch.empty(rows, order[0] + 1))
        self.weight_denominator = nn.Parameter(torch.empty(num_groups, order[1]))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets the coefficients back to those of `init`."""
        numerator, denominator = initial_coefficients(self.init, self.order)
        self.weight_numerator.copy_(numerator)
        self.weight_denominator.copy_(denominator)

    def forward(self, x: Tensor) -> Tensor:
        return rational(x, self.weight_numerator, self.weight_denominator, self.channel_dim)

    def extra_repr(self) -> str:
        shared = self.weight_numerator.shape[0] == 1
        return (
            f'num_groups={self.num_groups}, init={self.init!r}, order={self.order}, '
            f'shared_numerator={shared}, channel_dim={self.channel_dim}'
        )
