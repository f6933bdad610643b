"""The group-rational activation as a module."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from ..checks import check_int, check_ints
from ..errors import ConfigError
from . import cpp_autograd
from .coefficients import Init, initial_coefficients
from .op import rational

_plain = cpp_autograd.library and cpp_autograd.library.group_rational
_is_compiling = torch.compiler.is_compiling


@fx.wrap  # so torch.fx records one node, whatever the shape of the input it is traced without
def group_rational(
    x: Tensor, numerator: Tensor, denominator: Tensor, channel_dim: int | None
) -> Tensor:
    """Computes `rational`, with the channel dimension that None means as of `GroupRational`."""
    if channel_dim is None:
        if x.dim() == 3:
            raise ValueError(
                f'GroupRational: of x {tuple(x.shape)} either dimension may be that of the '
                'channels: choose channel_dim=-1 for tokens [B, N, C], channel_dim=1 for [B, C, L]'
            )
        channel_dim = 1 if x.dim() > 3 else -1
    return rational(x, numerator, denominator, channel_dim)


class GroupRational(nn.Module):
    """Applies P(x) / Q(x), with learnable P and Q for each group of adjacent channels.

    P(x) = a0 + a1 x + ... + am x^m and Q(x) = 1 + |b1||x| + ... + |bn||x|^n (KAT,
    arXiv 2409.10594, section 4). Input and output have the same shape, with the channels, a
    multiple of `num_groups`, at `channel_dim`. It is an mm activation,
    `act_cfg=dict(type='GroupRational')`, with channel_dim=-1 where it sees tokens.

    Powers of x overflow: F(x) is finite while every a_i x^i and b_j |x|^j is, that is below 3.4e38
    in the arithmetic of all inputs but fp64. At the order (5, 4) with coefficients near 1 that is
    |x| < 5e7, which no fp16 exceeds; at (8, 8) it is |x| < 6.5e4, and beyond it inf / inf = NaN.

    The parameters have one dimension, so that code which initialises or decays parameters of two,
    as DETR's and timm's does, takes them for what they are, no matrices. Their names are those of
    the published KAT checkpoints, `weight_numerator` and `weight_denominator`, and loading takes
    the shapes there too, [1, m + 1] and [G, n], which `numerator` and `denominator` have, and
    FlashKAT's names, `numerator_v` and `denominator_v`. A model
    that is sharded (FSDP2) takes one dimension alone: load a published checkpoint before.

    Args:
        num_groups: number of groups, G.
        init: the function that the activation starts as: a name in
            `kat_mm.rational.coefficients.FITS`, or a pair of coefficient sequences
            (a0..am, b1..bn).
        order: degrees (m, n) of P and Q, each from 1 to 8.
        shared_numerator: one numerator for all groups, [1, m + 1], as in the published models;
            otherwise [G, m + 1].
        channel_dim: the channel dimension. None is dimension 1 of an input with four or more
            dimensions, as of maps [B, C, H, W], and the last one of [B, C] and [C]. Tokens
            [B, N, C] need -1 and sequences [B, C, L] need 1, as nothing tells them apart; tokens
            that keep their map's shape, [B, H, W, C], need -1.
        inplace: ignored; mm's layers pass it.

    Raises:
        ConfigError: for an unknown init or one that does not fit the order, and for numbers out
            of range.
        ValueError: in forward for channels that num_groups does not divide, and for an input of
            three dimensions where channel_dim is None.
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
        self.register_load_state_dict_pre_hook(_flatten_published)
        self.reset_parameters()

    @property
    def numerator_shape(self) -> tuple[int, int]:
        """The published shape of `weight_numerator`, [1 or G, m + 1]."""
        return 1 if self.shared_numerator else self.num_groups, self.order[0] + 1

    @property
    def denominator_shape(self) -> tuple[int, int]:
        """The published shape of `weight_denominator`, [G, n]."""
        return self.num_groups, self.order[1]

    @property
    def numerator(self) -> Tensor:
        """The coefficients a0..am of all groups or of each, [1 or G, m + 1]."""
        return self.weight_numerator.view(self.numerator_shape)

    @property
    def denominator(self) -> Tensor:
        """The coefficients b1..bn of each group, [G, n]."""
        return self.weight_denominator.view(self.denominator_shape)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets the coefficients back to those of `init`."""
        parameters = self.weight_numerator, self.weight_denominator
        coefficients = initial_coefficients(self.init, self.order)
        for parameter, row in zip(parameters, coefficients, strict=True):
            values = row.repeat(len(parameter) // len(row))
            if hasattr(parameter, 'device_mesh'):  # a DTensor, as FSDP2 makes of it
                from torch.distributed.tensor import distribute_tensor

                values = distribute_tensor(values, parameter.device_mesh, parameter.placements)
            parameter.copy_(values)

    def forward(self, input: Tensor) -> Tensor:  # by the name that torch's activations have
        if _plain is not None and type(self) is GroupRational and not _is_compiling():
            # Not by attribute, as a module takes as long to find one as the rest of this takes.
            parameters = self._parameters
            y = _plain(
                input,
                parameters.get('weight_numerator'),
                parameters.get('weight_denominator'),
                self.num_groups,
                self.order,
                self.shared_numerator,
                self.channel_dim,
            )
            if y is not None:
                return y
        return group_rational(input, self.numerator, self.denominator, self.channel_dim)

    def extra_repr(self) -> str:
        return (
            f'num_groups={self.num_groups}, init={self.init!r}, order={self.order}, '
            f'shared_numerator={self.shared_numerator}, channel_dim={self.channel_dim}'
        )


def published_state_dict(
    model: nn.Module, state_dict: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Returns a state dict with coefficients in the shapes of the published KAT checkpoints.

    These are [1, m + 1] and [G, n]. All other entries are as they were, and so are coefficients of
    other numbers than the model has.

    Args:
        model: has the `GroupRational` layers.
        state_dict: one of the model, by default its own. For a model that is sharded (FSDP2) it
            must be a full one, as `torch.distributed.checkpoint.state_dict` makes it.
    """
    shapes = {}
    for layer in model.modules():
        if isinstance(layer, GroupRational):
            shapes[id(layer.weight_numerator)] = layer.numerator_shape
            shapes[id(layer.weight_denominator)] = layer.denominator_shape
    result = dict(model.state_dict() if state_dict is None else state_dict)
    # By the parameter and not by its name in the model, which wrappers may hide in state dicts.
    for key, parameter in model.state_dict(keep_vars=True).items():
        shape = shapes.get(id(parameter))
        if shape and key in result and result[key].shape == parameter.shape:
            result[key] = result[key].view(shape)
    return result


def _flatten_published(layer, state_dict, prefix, local_metadata, strict, *keys_and_errors):
    """Makes coefficients of published shapes one-dimensional; other shapes are errors.

    Those of FlashKAT's layers have other names.
    """
    for part, shape in (
        ('numerator', layer.numerator_shape),
        ('denominator', layer.denominator_shape),
    ):
        key, own = f'{prefix}weight_{part}', getattr(layer, f'weight_{part}')
        if f'{prefix}{part}_v' in state_dict:
            state_dict[key] = state_dict.pop(f'{prefix}{part}_v')
        loaded = state_dict.get(key, own)
        if loaded.shape == own.shape:
            continue
        if loaded.shape != shape:
            keys_and_errors[-1].append(
                f'size mismatch for {key}: the checkpoint has {tuple(loaded.shape)}, the model has '
                f'{shape}; num_groups, order and shared_numerator set it'
            )
            loaded = own.detach()
        state_dict[key] = loaded.flatten()
