"""The torch op kat_mm::upsample_bilinear: bilinear resizing with the same gradient in each run.

On a GPU, torch's backward adds by atomics, in fp32 under autocast; here each input gathers what it
gets, in a fixed order and in the dtype of the input. Elsewhere it is torch's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..rational.op import library


def upsample_bilinear(input: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Resizes x [B, C, h, w] to [B, C, *size], as F.interpolate(mode='bilinear') does.

    It keeps the dtype of the input, under autocast too, and computes in fp32 (fp64 for fp64). Where
    channels are last in the input's memory, they are in the result's.
    """
    return torch.ops.kat_mm.upsample_bilinear.default(input, *size, align_corners)


def _reference(input: Tensor, height: int, width: int, align_corners: bool = False) -> Tensor:
    size = (height, width)
    y = F.interpolate(input, size, mode='bilinear', align_corners=align_corners)
    return y.contiguous(memory_format=_layout(input))


def _backward_reference(
    grad: Tensor, height: int, width: int, align_corners: bool = False
) -> Tensor:
    return torch.ops.aten.upsample_bilinear2d_backward(
        grad, grad.shape[2:], [*grad.shape[:2], height, width], align_corners
    ).contiguous(memory_format=_layout(grad))


def _layout(x: Tensor) -> torch.memory_format:
    is_last = x.shape[1] % 4 == 0 and x.is_contiguous(memory_format=torch.channels_last)
    is_last = is_last and not x.is_contiguous()
    return torch.channels_last if is_last else torch.contiguous_format


library.impl('upsample_bilinear', _reference, 'CompositeExplicitAutograd')
library.impl('upsample_bilinear_backward', _backward_reference, 'CompositeExplicitAutograd')


@torch.library.register_fake('kat_mm::upsample_bilinear', lib=library)
@torch.library.register_fake('kat_mm::upsample_bilinear_backward', lib=library)
def _fake(x, height, width, align_corners=False):
    y = x.new_empty(*x.shape[:2], height, width)
    return y.contiguous(memory_format=_layout(x))


def _setup_context(ctx, inputs, output):
    input, _, _, ctx.align_corners = inputs
    ctx.size = input.shape[2:]


def _backward(ctx, grad):
    grad_input = torch.ops.kat_mm.upsample_bilinear_backward.default(
        grad, *ctx.size, ctx.align_corners
    )
    return grad_input, None, None, None


torch.library.register_autograd(
    'kat_mm::upsample_bilinear', _backward, setup_context=_setup_context, lib=library
)
