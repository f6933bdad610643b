"""The GR-KAN layer, which takes the place of a transformer's MLP."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...checks import check_int, check_probability
from ...errors import ConfigError
from ...rational.coefficients import variance_gain
from ...rational.layer_norm_rational import layer_norm_rational
from ...rational.linear import linear
from ...registry import FFNS, Config
from ..activations import ACTIVATIONS


@FFNS.register('gr_kan')
class GRKAN(nn.Module):
    """Computes fc2(act2(fc1(act1(x)))) with learnable group activations, rational by default.

    x is [..., embed_dims] and so is the result (KAT, arXiv 2409.10594, section 4). The layer
    starts variance-preserving (same section): weights are drawn from N(0, gain / fan_in) with
    gain = 1 / E[F(z)^2], z ~ N(0, 1), of the activation F in front of them, biases are zero.

    Args:
        embed_dims: channels of input and output.
        hidden_channels: channels between the linear layers; by default 4 * embed_dims.
        activation: a name in `ACTIVATIONS`, or a dict of its type and arguments, such as
            dict(type='rational', num_groups=8, order=(5, 4)). Its groups divide both numbers of
            channels.
        act_init: what act1 and act2 start as, each as `init` of the activation.
        drop: dropout probability behind fc1 and fc2.

    Raises:
        ConfigError: for channels that the groups do not divide, an act_init that is not a pair of
            what the activation can start as, and numbers out of range.
    """

    fuses_norm = True

    def __init__(
        self,
        embed_dims: int,
        hidden_channels: int | None = None,
        activation: Config = 'rational',
        act_init: Sequence = ('identity', 'swish'),
        drop: float = 0.0,
    ):
        super().__init__()
        if hidden_channels is None:
            hidden_channels = 4 * check_int('embed_dims', embed_dims)
        is_list = isinstance(act_init, Sequence) and not isinstance(act_init, str)
        if not is_list or len(act_init) != 2:
            raise ConfigError(
                'act_init must be a pair, what act1 and act2 start as, such as '
                f"('identity', 'swish'); got {act_init!r}"
            )
        self.act1, self.act2 = (
            ACTIVATIONS.build(activation, init=init, channel_dim=-1) for init in act_init
        )
        groups = getattr(self.act1, 'num_groups', 1)
        for name, channels in (('embed_dims', embed_dims), ('hidden_channels', hidden_channels)):
            if check_int(name, channels) % groups:
                raise ConfigError(
                    f'num_groups={groups} does not divide {name}={channels}; '
                    'choose a divisor of both embed_dims and hidden_channels'
                )
        self.fc1 = nn.Linear(embed_dims, hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, embed_dims)
        self.drop = nn.Dropout(drop) if check_probability('drop', drop) else nn.Identity()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets the activations back to act_init and draws the weights variance-preserving."""
        for act, fc in ((self.act1, self.fc1), (self.act2, self.fc2)):
            act.reset_parameters()
            if not fc.weight.is_meta:
                gain = variance_gain(partial(_apply, act))
                nn.init.normal_(fc.weight, std=(gain / fc.in_features) ** 0.5)
                nn.init.zeros_(fc.bias)

    def forward(self, x: Tensor, norm: nn.LayerNorm | None = None) -> Tensor:
        """Computes the layer, of norm(x) where a layer norm is given."""
        y = self.act1(x) if norm is None else layer_norm_rational(x, norm, self.act1)
        y = self.drop(linear(y, self.fc1))
        return self.drop(linear(self.act2(y), self.fc2))


def _apply(act: nn.Module, z: Tensor) -> Tensor:
    """Computes an activation of points z [N], in each of its groups: [N, groups]."""
    # Whole parameters, where FSDP2 has sharded them.
    whole = {name: getattr(p, 'full_tensor', lambda p=p: p)() for name, p in act.named_parameters()}
    like = next(iter(whole.values()), z)
    x = z.to(like)[:, None].expand(-1, getattr(act, 'num_groups', 1)).contiguous()
    return functional_call(act, whole, x)
