"""The torch op kat_mm::multilevel_roi_align: features of RoIs from a pyramid of maps.

All RoIs of all levels are pooled in one launch, and nothing is asked back from the GPU: which level
a RoI takes is decided where it is pooled. Gradients are summed in a fixed order.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..rational import torch_internals as internals
from ..rational.op import library
from .roi_align_reference import (
    multilevel_roi_align_backward_reference,
    multilevel_roi_align_reference,
)

MAX_SIDE = 32  # of an output on a GPU
MAX_LEVELS = 8  # on a GPU


def multilevel_roi_align(
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    output_size: int | tuple[int, int],
    scales: Sequence[float],
    sampling_ratio: int = 0,
    aligned: bool = True,
    *,
    finest_scale: float = 56,
    channels_last: bool = False,
) -> Tensor:
    """Pools each RoI from one level of a pyramid, as torchvision.ops.roi_align does from one map.

    Coordinates and arithmetic are fp32, whatever the maps have. It can be differentiated once, in
    the maps; their gradients have their dtype and layout, and the same bits in each run.

    Args:
        maps: each [B, C, H_l, W_l], in fp32, bf16 or fp16, with channels first or last in memory (a
            GPU reads the latter without a copy).
        rois: [K, 5] of image index, x1, y1, x2, y2 in pixels of the image. One with a negative
            index is padding: its features are 0, and it gives no gradient.
        levels: [K], int64, the map of each RoI; one that does not exist makes it padding. None
            takes them as FPN does (arXiv 1612.03144, equation 1), by floor(log2(sqrt(area) /
            finest_scale)), which leaves out boxes of negative area.
        output_size: bins along y and x, or one number for both.
        scales: of the image's coordinates to those of each map, such as 1 / 4.
        sampling_ratio: points a side of a bin; 0 takes as many as keep them within a pixel of each
            other.
        aligned: whether coordinates are those of pixel centres, half a pixel off.
        finest_scale: the side in pixels of RoIs below twice which take the first map.
        channels_last: the layout of the result.

    Returns:
        [K, C, *output_size], in the dtype of the maps.

    Raises:
        ValueError: for maps, RoIs, levels and scales that do not fit, with their shapes.
        TypeError: for maps of different dtypes.
        NotImplementedError: where its gradient is to be differentiated.

    Source: He et al., Mask R-CNN, arXiv 1703.06870, section 3.
    """
    maps = list(maps)
    size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    _check(maps, rois, levels, scales)
    return _call(
        maps,
        rois.detach().float(),
        levels,
        float(finest_scale),
        size,
        list(scales),
        int(sampling_ratio),
        bool(aligned),
        channels_last,
    )


def _check(maps, rois, levels, scales) -> None:
    shapes = [tuple(x.shape) for x in maps]
    fits = len(maps) == len(scales) > 0
    if not fits or any(len(s) != 4 or s[:2] != shapes[0][:2] for s in shapes):
        raise ValueError(
            'multilevel_roi_align: maps must be [B, C, H, W] with the same B and C, and there must '
            f'be a scale for each of them, got {shapes} and {len(scales)} scales'
        )
    if len({x.dtype for x in maps}) > 1:
        raise TypeError(
            f'multilevel_roi_align: maps must have one dtype, got {[x.dtype for x in maps]}'
        )
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise ValueError(f'multilevel_roi_align: rois must be [K, 5], got {tuple(rois.shape)}')
    if levels is not None and (levels.shape != rois.shape[:1] or levels.dtype != torch.int64):
        raise ValueError(
            'multilevel_roi_align: levels must be [K] in int64 for rois '
            f'{tuple(rois.shape)}, got {tuple(levels.shape)} in {levels.dtype}'
        )


library.impl('multilevel_roi_align', multilevel_roi_align_reference, 'CompositeExplicitAutograd')
library.impl(
    'multilevel_roi_align_backward',
    multilevel_roi_align_backward_reference,
    'CompositeExplicitAutograd',
)


@torch.library.register_fake('kat_mm::multilevel_roi_align', lib=library)
def _fake(
    maps,
    rois,
    levels,
    finest_scale,
    output_size,
    scales,
    sampling_ratio,
    aligned,
    channels_last,
):
    features = maps[0].new_empty(rois.shape[0], maps[0].shape[1], *output_size)
    return features.contiguous(memory_format=_layout(channels_last))


@torch.library.register_fake('kat_mm::multilevel_roi_align_backward', lib=library)
def _backward_fake(grad, rois, levels, sizes, finest_scale, scales, sampling_ratio, aligned):
    batch, channels, *sides = sizes
    grads = []
    for i in range(0, len(sides), 3):
        height, width, is_last = sides[i : i + 3]
        grad_map = grad.new_empty(batch, channels, height, width)
        grads.append(grad_map.contiguous(memory_format=_layout(is_last)))
    return grads


def _layout(channels_last) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _sizes(maps: Sequence[Tensor]) -> list[int]:
    """Returns B, C, and the height, the width and whether channels are last of each map."""
    sizes = [*maps[0].shape[:2]]
    for x in maps:
        is_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        sizes += [*x.shape[2:], int(is_last)]
    return sizes


def _setup_context(ctx, inputs, output):
    maps, rois, levels, finest_scale, _, scales, sampling_ratio, aligned, _ = inputs
    ctx.save_for_backward(rois, levels)
    ctx.sizes = _sizes(maps)
    ctx.options = finest_scale, scales, sampling_ratio, aligned


def _grads(ctx, grad) -> list[Tensor]:
    return torch.ops.kat_mm.multilevel_roi_align_backward.default(
        grad, *ctx.saved_tensors, ctx.sizes, *ctx.options
    )


def _backward(ctx, grad):
    return list(_grads(ctx, grad)), *[None] * 8


class MultilevelRoIAlign(torch.autograd.Function):
    """The op as eager mode calls it: what the dispatcher does with lists takes 0.1 ms a call."""

    @staticmethod
    def forward(ctx, options, *maps):
        inputs = [*maps], *options
        with internals.below_autograd():
            output = torch.ops.kat_mm.multilevel_roi_align.default(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx, grad):
        return None, *_grads(ctx, grad)


def _call(maps: list[Tensor], *options) -> Tensor:
    is_plain = not (torch.compiler.is_compiling() or internals.is_tracing())
    if is_plain and not internals.is_transformed() and internals.forward_ad._current_level < 0:
        return MultilevelRoIAlign.apply(options, *maps)
    return torch.ops.kat_mm.multilevel_roi_align.default(maps, *options)


def _backward_of_backward(ctx, *grads):
    raise NotImplementedError(
        'kat_mm::multilevel_roi_align_backward cannot be differentiated: multilevel_roi_align has '
        'first derivatives alone'
    )


torch.library.register_autograd(
    'kat_mm::multilevel_roi_align', _backward, setup_context=_setup_context, lib=library
)
torch.library.register_autograd(
    'kat_mm::multilevel_roi_align_backward', _backward_of_backward, lib=library
)
