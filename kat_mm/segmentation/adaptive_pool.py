"""Adaptive average pooling with the same gradient in each run.

On a GPU, torch's backward adds by atomics where bins overlap, and refuses to run where algorithms
must be deterministic.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..rational.torch_internals import has_tangents, is_transformed


def adaptive_avg_pool2d(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Computes F.adaptive_avg_pool2d(x, size) of x [B, C, h, w]; its gradient is two products.

    The gradient of a map with the channels last has them last. Transforms of torch.func, and
    forward mode, get torch's own.
    """
    if not torch.compiler.is_compiling() and (is_transformed() or has_tangents()):
        return F.adaptive_avg_pool2d(x, size)
    return _AdaptiveAvgPool2d.apply(x, *size)


def pooling_matrix(inputs: int, bins: int, like: Tensor) -> Tensor:
    """Computes the matrix [bins, inputs] of torch's adaptive average pooling along one side.

    Bin i is the mean of the inputs from floor(i * inputs / bins) to before
    ceil((i + 1) * inputs / bins).
    """
    i = torch.arange(bins, device=like.device)[:, None]
    place = torch.arange(inputs, device=like.device)
    start, end = i * inputs // bins, -(-(i + 1) * inputs // bins)
    inside = (place >= start) & (place < end)
    return inside.to(like.dtype) / (end - start)


class _AdaptiveAvgPool2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, height: int, width: int) -> Tensor:
        ctx.size = x.shape[2:]
        ctx.is_channels_last = not x.is_contiguous() and x.is_contiguous(
            memory_format=torch.channels_last
        )
        return F.adaptive_avg_pool2d(x, (height, width))

    @staticmethod
    def backward(ctx, grad: Tensor):
        wide = grad if grad.dtype == torch.float64 else grad.float()
        with torch.autocast(grad.device.type, enabled=False):
            rows, columns = (
                pooling_matrix(side, bins, wide)
                for side, bins in zip(ctx.size, grad.shape[2:], strict=True)
            )
            if ctx.is_channels_last:
                batch, channels, height, width = wide.shape
                wide = wide.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
                found = columns.T @ (rows.T @ wide).view(batch, -1, width, channels)
                found = found.permute(0, 3, 1, 2)
            else:
                found = rows.T @ wide @ columns
            return found.to(grad.dtype), None, None
