"""The group-rational activation as a module."""

import math

import torch
from torch import Tensor, nn

from ..checks import check_int, check_ints
from ..errors import ConfigError
from .coefficients import Init, initial_coefficients
from .op import rational


class GroupRational(nn.Module):
    """Applies P(x) / Q(x), with learnable P and Q for each group of adjacent channels.

    P(x) = a0 + a1 x + ... + am x^m and Q(x) = 1 + |b1||x| + ... + |bn||x|^n (KAT,
    arXiv 2409.10594, section 4). Input and output have the same shape, with the channels, a
    multiple of `num_groups`, at `channel_dim`. It is an mm activation,
    `act_cfg=dict(type='GroupRational')`.

    The parameters are flat, so that code which initialises or decays parameters of two dimensions,
    as DETR's and timm's does, takes them for what they are, no matrices. Names and shapes in
    `state_dict()` are those of the published KAT checkpoints: `weight_numerator` [1, m + 1] and
    `weight_denominator` [G, n]; `numerator` and `denominator` are views of these shapes.

    Args:
        num_groups: number of groups, G.
        init: the function that the activation starts as: a name in
            `kat_mm.rational.coefficients.FITS`, or a pair of coefficient sequences
            (a0..am, b1..bn).
        order: degrees (m, n) of P and Q, each from 1 to 8.
        shared_numerator: one numerator for all groups, [1, m + 1], as in the published models;
            otherwise [G, m + 1].
        channel_dim: the channel dimension. None is dimension 1 of an input with four or more
            dimensions, which maps [B, C, H, W] have, and the last one of any other. So tokens
            that keep their map's shape, [B, H, W, C], need -1.
        inplace: ignored; mm's layers pass it.

    Raises:
        ConfigError: for an unknown init or one that does not fit the order, and for numbers out
            of range.
        ValueError: in forward for channels that num_groups does not divide.
    """

    def __init__(
        self,
        num_groups: int = 8,
        init: Init = 'swish',
        order: tuple[int, int] = (5, 4),
        shared_numerator: bool = True,
        channel_dim: int | None = None,
        inplace: bool = False,
    ):
        super().__init__()
        check_int('num_groups', num_groups)
        if len(check_ints('order', order)) != 2 or max(order) > 8:
            raise ConfigError(f'order={tuple(order)} must be two degrees (m, n) between 1 and 8')
        self.num_groups = num_groups
        self.init = init
        self.order = tuple(order)
        self.channel_dim = channel_dim
        self.shared_numerator = shared_numerator
        self.weight_numerator = nn.Parameter(torch.empty(math.prod(self.numerator_shape)))
        self.weight_denominator = nn.Parameter(torch.empty(math.prod(self.denominator_shape)))
        self.register_state_dict_post_hook(_to_published_shapes)
        self.register_load_state_dict_pre_hook(_from_published_shapes)
        self.reset_parameters()

    @property
    def numerator_shape(self) -> tuple[int, int]:
        return 1 if self.shared_numerator else self.num_groups, self.order[0] + 1

    @property
    def denominator_shape(self) -> tuple[int, int]:
        return self.num_groups, self.order[1]

    @property
    def numerator(self) -> Tensor:
        """a0..am, [1 or G, m + 1]."""
        return self.weight_numerator.view(self.numerator_shape)

    @property
    def denominator(self) -> Tensor:
        """b1..bn of each group, [G, n]."""
        return self.weight_denominator.view(self.denominator_shape)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets the coefficients back to those of `init`."""
        numerator, denominator = initial_coefficients(self.init, self.order)
        self.numerator.copy_(numerator)
        self.denominator.copy_(denominator)

    def forward(self, x: Tensor) -> Tensor:
        dim = self.channel_dim
        if dim is None:
            dim = 1 if x.dim() >= 4 else -1
        return rational(x, self.numerator, self.denominator, dim)

    def extra_repr(self) -> str:
        return (
            f'num_groups={self.num_groups}, init={self.init!r}, order={self.order}, '
            f'shared_numerator={self.shared_numerator}, channel_dim={self.channel_dim}'
        )


def _shapes(layer: GroupRational, prefix: str) -> dict[str, tuple[int, int]]:
    return {
        prefix + 'weight_numerator': layer.numerator_shape,
        prefix + 'weight_denominator': layer.denominator_shape,
    }


def _to_published_shapes(layer, state_dict, prefix, local_metadata):
    """Gives a state dict's coefficients their two dimensions."""
    for key, shape in _shapes(layer, prefix).items():
        if key in state_dict:
            state_dict[key] = state_dict[key].view(shape)


def _from_published_shapes(layer, state_dict, prefix, local_metadata, strict, *keys_and_errors):
    """Makes a state dict's coefficients flat, as the parameters are; other shapes are errors."""
    errors = keys_and_errors[-1]
    for key, shape in _shapes(layer, prefix).items():
        loaded = state_dict.get(key)
        if loaded is None:
            continue
        if loaded.shape != shape:
            errors.append(
                f'size mismatch for {key}: the checkpoint has {tuple(loaded.shape)}, the model has '
                f'{shape}; num_groups, order and shared_numerator set it'
            )
            loaded = getattr(layer, key[len(prefix) :]).detach()
        state_dict[key] = loaded.flatten()
