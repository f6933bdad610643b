"""The simple feature pyramid: maps of several strides from the one map of a plain backbone."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, distributed, nn
from torch.autograd import Function

from ..arithmetic import ceil_div
from ..checks import check_int, check_ints
from ..errors import ConfigError
from ..registry import PYRAMIDS

Norm = Callable[[int], nn.Module]


class LayerNorm2d(nn.LayerNorm):
    """Normalises the channels of x [B, C, H, W] at each position."""

    def __init__(self, num_channels: int, eps: float = 1e-6, **kwargs):
        super().__init__(num_channels, eps, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@PYRAMIDS.register('simple')
class SimplePyramid(nn.Module):
    """Computes maps at several strides, each from the last map of a backbone alone.

    A level at a finer stride is upsampled by a 2 x 2 deconvolution for each factor of two, which
    halves the channels, with norm and GELU between two of them; one at a coarser stride is
    max-pooled. Then come a 1 x 1 and a 3 x 3 convolution, each with a norm (ViTDet,
    arXiv 2203.16527, section 3).

    Args:
        in_channels: channels of the map.
        out_channels: channels of the levels, one number for all or one for each.
        in_stride: stride of the map in pixels, the patch size of a plain backbone.
        strides: strides of the levels in pixels. Each is in_stride times a power of two, such as
            4 = 16 / 4. They may repeat.
        num_outs: number of maps returned. Those beyond the strides subsample the last level by
            2 each, as Mask R-CNN's anchors need. By default as many as strides.
        norm: makes the norm behind a convolution from its number of channels; None for no norms,
            and then convolutions have biases.

    Returns from forward:
        A tuple of maps [B, out_channels, ceil(n * in_stride / stride), ...] where the input has
        size n; with the image's size (H, W) as a second argument, cropped to
        [B, out_channels, ceil(H / stride), ceil(W / stride)].

    Raises:
        ConfigError: for a stride that cannot be reached, numbers of channels that do not fit the
            strides, or num_outs below their number.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | Sequence[int] = 256,
        in_stride: int = 16,
        strides: Sequence[int] = (4, 8, 16, 32),
        num_outs: int | None = None,
        norm: Norm | None = LayerNorm2d,
    ):
        super().__init__()
        strides = check_ints('strides', strides)
        is_one = not isinstance(out_channels, Iterable)
        channels = check_ints(
            'out_channels', (out_channels,) * len(strides) if is_one else out_channels
        )
        check_int('in_channels', in_channels)
        check_int('in_stride', in_stride)
        if len(channels) != len(strides):
            raise ConfigError(
                f'out_channels {channels} must be one number or one for each of the strides '
                f'{strides}'
            )
        num_outs = len(strides) if num_outs is None else check_int('num_outs', num_outs)
        if num_outs < len(strides):
            raise ConfigError(
                f'num_outs={num_outs} is less than the number of strides {strides}; '
                'leave strides out instead'
            )
        self.strides = strides
        self.out_channels = channels
        self.num_extra = num_outs - len(strides)
        self.levels = nn.ModuleDict()
        for i, (stride, width) in enumerate(zip(strides, channels, strict=True)):
            repeats = strides[:i].count(stride)
            name = f'stride{stride}_{repeats + 1}' if repeats else f'stride{stride}'
            self.levels[name] = _level(in_channels, width, in_stride, stride, norm)

    def forward(
        self, inputs: Tensor | Sequence[Tensor], image_size: tuple[int, int] | None = None
    ) -> tuple[Tensor, ...]:
        x = inputs if isinstance(inputs, Tensor) else inputs[-1]
        maps = []
        for stride, level in zip(self.strides, self.levels.values(), strict=True):
            y = level(x)
            if image_size is not None:
                h, w = (ceil_div(size, stride) for size in image_size)
                y = y[..., :h, :w]
            maps.append(y.contiguous())
        for _ in range(self.num_extra):
            maps.append(maps[-1][..., ::2, ::2].contiguous())
        if distributed.is_available() and distributed.is_initialized() and torch.is_grad_enabled():
            return _AllLevels.apply(*maps)
        return tuple(maps)


class _AllLevels(Function):
    """Passes maps through, and zero gradients back to those that no loss depends on.

    Levels are independent, unlike the stages of a ResNet: one that a neck or head leaves out would
    have no gradients, which distributed training takes for an error. A single process skips
    this. The out_indices of the backbone leave such levels out, and save their cost.
    """

    @staticmethod
    def forward(ctx, *maps: Tensor) -> tuple[Tensor, ...]:
        # Detached, as autograd allows no activation in place on inputs that are returned as such.
        return tuple(y.detach() for y in maps)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients  # autograd has made those missing into zeros


def _level(
    in_channels: int, out_channels: int, in_stride: int, stride: int, norm: Norm | None
) -> nn.Sequential:
    fine, coarse = max(in_stride // stride, 1), max(stride // in_stride, 1)
    if fine * stride != coarse * in_stride or (fine * coarse) & (fine * coarse - 1):
        raise ConfigError(
            f'no pyramid level at stride {stride} from a map of stride {in_stride}: their ratio '
            f'must be a power of two; choose strides like {in_stride} or {2 * in_stride}, '
            'or another patch size'
        )
    halvings = fine.bit_length() - 1
    if in_channels % fine:
        raise ConfigError(
            f'{in_channels} channels cannot be halved {halvings} times on the way from stride '
            f'{in_stride} to {stride}'
        )
    layers: list[nn.Module] = []
    channels = in_channels
    for i in range(halvings):
        if i:
            layers += [*_norm(norm, channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, 2))
        channels //= 2
    if coarse > 1:
        # ceil_mode: a map of odd size keeps its last row and column.
        layers.append(nn.MaxPool2d(coarse, coarse, ceil_mode=True))
    bias = norm is None
    layers += [
        nn.Conv2d(channels, out_channels, 1, bias=bias),
        *_norm(norm, out_channels),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias),
        *_norm(norm, out_channels),
    ]
    return nn.Sequential(*layers)


def _norm(norm: Norm | None, channels: int) -> list[nn.Module]:
    return [] if norm is None else [norm(channels)]
