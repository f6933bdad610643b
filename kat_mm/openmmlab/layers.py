"""The parts of KAT's blocks that configs of OpenMMLab use on their own."""

from collections.abc import Sequence

from mmengine.registry import MODELS
from torch import Tensor, nn

from .. import models
from ..errors import ConfigError
from ..models.pyramid import LayerNorm2d
from ..rational import GroupRational
from ..registry import Config

MODELS.register_module(module=GroupRational)
# The name that pyramids and heads of OpenMMLab know it by, in norm_cfg, and that other packages may
# have given to a class of theirs.
if 'LN2d' not in MODELS.module_dict:
    MODELS.register_module('LN2d', module=LayerNorm2d)


@MODELS.register_module()
class GRKAN(models.GRKAN):
    """The GR-KAN layer as mm's feed-forward network: `ffn_cfg=dict(type='GRKAN', ...)`.

    Takes the arguments of mmcv's `FFN` that have a meaning here.

    Args:
        embed_dims: channels of input and output.
        feedforward_channels: hidden channels; by default 4 * embed_dims.
        num_fcs: 2; mm's configs pass it.
        act_cfg: ignored, since the activations are learnable; mm's configs pass it.
        ffn_drop: dropout probability behind fc1 and fc2.
        dropout_layer: config of a module for the branch, such as
            `dict(type='DropPath', drop_prob=0.1)`.
        add_identity: adds the input, or `identity` where forward gets one.
        activation, act_init: as of `kat_mm.models.GRKAN`.

    Raises:
        ConfigError: as `kat_mm.models.GRKAN`, and for num_fcs other than 2.
    """

    def __init__(
        self,
        embed_dims: int,
        feedforward_channels: int | None = None,
        num_fcs: int = 2,
        act_cfg: dict | None = None,
        ffn_drop: float = 0.0,
        dropout_layer: dict | None = None,
        add_identity: bool = True,
        activation: Config = 'rational',
        act_init: Sequence = ('identity', 'swish'),
    ):
        if num_fcs != 2:
            raise ConfigError(f'GRKAN has two linear layers, got num_fcs={num_fcs}; remove num_fcs')
        super().__init__(embed_dims, feedforward_channels, activation, act_init, ffn_drop)
        self.dropout_layer = MODELS.build(dropout_layer) if dropout_layer else nn.Identity()
        self.add_identity = add_identity

    def forward(self, x: Tensor, identity: Tensor | None = None) -> Tensor:
        """Computes the layer, and the identity connection around it as mmcv's FFN does."""
        y = self.dropout_layer(super().forward(x))
        if not self.add_identity:
            return y
        return y + (x if identity is None else identity)
