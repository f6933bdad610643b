"""The GR-KAN layer, which takes the place of a transformer's MLP."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ...checks import check_int, check_probability
from ...errors import ConfigError
from ...rational.coefficients import Init, evaluate, initial_coefficients, variance_gain
from ...rational.layer import GroupRational
from ...rational.layer_norm_rational import layer_norm_rational


class GRKAN(nn.Module):
    """Computes fc2(act2(fc1(act1(x)))) with group-rational activations.

    x is [..., embed_dims] and so is the result (KAT, arXiv 2409.10594, section 4). The layer
    starts variance-preserving (same section): weights are drawn from N(0, gain / fan_in) with
    gain = 1 / E[F(z)^2], z ~ N(0, 1), of the activation F in front of them, biases are zero.

    It is also an mm feed-forward network, `ffn_cfgs=dict(type='GRKAN', ...)`, with the arguments
    of mmcv's `FFN` that have a meaning here.

    Args:
        embed_dims: channels of input and output.
        feedforward_channels: hidden channels; by default 4 * embed_dims.
        num_groups: groups of each activation; divides both numbers of channels.
        act_init: what act1 and act2 start as, each as in `GroupRational`.
        ffn_drop: dropout probability behind fc1 and fc2.
        dropout_layer: config of a module for the branch, such as
            `dict(type='DropPath', drop_prob=0.1)`; it needs mmengine.
        add_identity: adds the input, or `identity` where forward gets one.
        num_fcs: 2; mm's configs pass it.
        act_cfg: ignored, since the activations are rational; mm's configs pass it.

    Raises:
        ConfigError: for channels that num_groups does not divide, an act_init that is not a pair
            of known functions, numbers out of range, or num_fcs other than 2.
    """

    def __init__(
        self,
        embed_dims: int,
        feedforward_channels: int | None = None,
        num_groups: int = 8,
        act_init: Sequence[Init] = ('identity', 'swish'),
        ffn_drop: float = 0.0,
        dropout_layer: dict | None = None,
        add_identity: bool = True,
        num_fcs: int = 2,
        act_cfg: dict | None = None,
    ):
        super().__init__()
        if feedforward_channels is None:
            feedforward_channels = 4 * check_int('embed_dims', embed_dims)
        check_probability('ffn_drop', ffn_drop)
        if num_fcs != 2:
            raise ConfigError(f'GRKAN has two linear layers, got num_fcs={num_fcs}; remove num_fcs')
        is_list = isinstance(act_init, Sequence) and not isinstance(act_init, str)
        if not is_list or len(act_init) != 2:
            raise ConfigError(
                'act_init must be a pair, what act1 and act2 start as, such as '
                f"('identity', 'swish'); got {act_init!r}"
            )
        for name, channels in (
            ('embed_dims', embed_dims),
            ('feedforward_channels', feedforward_channels),
        ):
            if check_int(name, channels) % check_int('num_groups', num_groups):
                raise ConfigError(
                    f'num_groups={num_groups} does not divide {name}={channels}; '
                    'choose a divisor of both embed_dims and feedforward_channels'
                )
        self.act1 = GroupRational(num_groups, act_init[0], channel_dim=-1)
        self.fc1 = nn.Linear(embed_dims, feedforward_channels)
        self.act2 = GroupRational(num_groups, act_init[1], channel_dim=-1)
        self.fc2 = nn.Linear(feedforward_channels, embed_dims)
        self.drop = nn.Dropout(ffn_drop) if ffn_drop else nn.Identity()
        self.dropout_layer = _build(dropout_layer)
        self.add_identity = add_identity
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets the activations back to act_init and draws the weights variance-preserving."""
        for act, fc in ((self.act1, self.fc1), (self.act2, self.fc2)):
            act.reset_parameters()
            numerator, denominator = initial_coefficients(act.init, act.order)
            function = partial(evaluate, numerator=numerator, denominator=denominator)
            gain = variance_gain(function)
            nn.init.normal_(fc.weight, std=(gain / fc.in_features) ** 0.5)
            nn.init.zeros_(fc.bias)

    def forward(
        self, x: Tensor, identity: Tensor | None = None, norm: nn.LayerNorm | None = None
    ) -> Tensor:
        """Computes the layer, of norm(x) where a layer norm is given."""
        y = self.act1(x) if norm is None else layer_norm_rational(x, norm, self.act1)
        y = self.drop(self.fc1(y))
        y = self.dropout_layer(self.drop(self.fc2(self.act2(y))))
        if not self.add_identity:
            return y
        return y + (x if identity is None else identity)


def _build(cfg: dict | None) -> nn.Module:
    if not cfg:
        return nn.Identity()
    from mmengine.registry import MODELS  # configs exist only where mmengine does

    return MODELS.build(cfg)
