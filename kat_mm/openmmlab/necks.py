"""Necks that make maps of several strides from those of a plain backbone."""

from collections.abc import Sequence
from functools import partial

from mmengine.model import Sequential
from mmengine.registry import MODELS
from torch import Tensor, nn

from .. import models
from ..checks import check_bool, check_int
from ..errors import ConfigError
from .channels_last import init_in_order, put_channels_last


@MODELS.register_module()
class SimplePyramid(models.SimplePyramid):
    """`kat_mm.models.SimplePyramid` as a neck, with norms by config.

    Args:
        in_channels, out_channels, in_stride, strides, num_outs: as of the pyramid.
        norm_cfg: norm behind convolutions, which mmcv builds; None for none.

    Raises:
        ConfigError: as the pyramid, and for a norm_cfg without a type.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | Sequence[int] = 256,
        in_stride: int = 16,
        strides: Sequence[int] = (4, 8, 16, 32),
        num_outs: int | None = None,
        norm_cfg: dict | None = {'type': 'LN2d', 'eps': 1e-6},  # noqa: B006, never written to
    ):
        norm = None
        if norm_cfg is not None:
            if not isinstance(norm_cfg, dict) or 'type' not in norm_cfg:
                raise ConfigError(f"norm_cfg={norm_cfg!r} must be a dict with a type, such as 'BN'")
            norm = partial(_norm, norm_cfg)
        super().__init__(in_channels, out_channels, in_stride, strides, num_outs, norm)


def _norm(norm_cfg: dict, channels: int) -> nn.Module:
    from mmcv.cnn import build_norm_layer  # takes seconds to import, which only its users need

    return build_norm_layer(norm_cfg, channels)[1]


@MODELS.register_module()
class RescalingFPN(Sequential):
    """Brings four maps of a plain backbone to strides of their own, and then runs mmdet's FPN.

    The maps of four blocks, all of stride 16, become maps of strides 4, 8, 16 and 32, as
    arXiv 2111.11429 (section 3) has it: a 2 x 2 deconvolution for each factor of two, with group
    norm and GELU between two of them, and max pooling.

    Args:
        in_channels: channels of the maps.
        out_channels: channels of the FPN's.
        num_groups: groups of the group norm, which divide in_channels.
        channels_last: on a GPU, gives maps with the channels last in memory, in which it and heads
            of convolutions are faster; heads that call `view` on maps need them as they were.
        **fpn: other arguments of mmdet's FPN, such as num_outs.

    Returns from forward:
        The FPN's maps.

    Raises:
        ConfigError: for numbers that are none or do not fit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        num_groups: int = 32,
        channels_last: bool = False,
        **fpn,
    ):
        if check_int('in_channels', in_channels) % check_int('num_groups', num_groups):
            raise ConfigError(
                f'num_groups={num_groups} does not divide in_channels={in_channels}; choose a '
                'divisor'
            )
        fpn = dict(
            type='mmdet.FPN', in_channels=[in_channels] * 4, out_channels=out_channels, **fpn
        )
        super().__init__(_Rescale(in_channels, num_groups), MODELS.build(fpn))
        self.in_channels = in_channels
        self.channels_last = check_bool('channels_last', channels_last)
        if channels_last:
            put_channels_last(self)

    def init_weights(self) -> None:
        if self.channels_last:
            init_in_order(super().init_weights, self)
        else:
            super().init_weights()


class _Rescale(nn.Module):
    """Gives each of four maps [B, C, h, w] its own size, 4, 2, 1 and 1/2 times that."""

    def __init__(self, channels: int, num_groups: int):
        super().__init__()

        def double() -> nn.Module:
            return nn.ConvTranspose2d(channels, channels, 2, 2)

        norm = nn.GroupNorm(num_groups, channels)
        self.upsample_4x = nn.Sequential(double(), norm, nn.GELU(), double())
        self.upsample_2x = nn.Sequential(double())
        self.downsample_2x = nn.MaxPool2d(2, 2)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        finest, fine, same, coarse = maps
        return self.upsample_4x(finest), self.upsample_2x(fine), same, self.downsample_2x(coarse)
