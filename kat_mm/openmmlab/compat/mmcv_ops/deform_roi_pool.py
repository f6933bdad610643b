"""Deformable RoI pooling: RoIAlign, each of whose bins is moved by a learned offset.

`input` is [N, C, H, W], `rois` [K, 5] hold (image index, x1, y1, x2, y2), and everything about
`spatial_scale`, `sampling_ratio` and the grid of points of a bin is as in roi_align.py, with
`aligned` and the mean. `offset` [K, 2, height, width] moves a bin by (dx, dy) * gamma, in units of
the RoI's width and height; without values it moves none. A point up to one pixel outside the map
takes the value at the border, one beyond it 0.

Source: Dai et al., arXiv 1703.06211, section 2.2.

The gradient by the offsets is that of this function. mmcv's kernel extrapolates instead for points
outside the centres of the outermost pixels, where the function is constant.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernel import kernel, to_float
from .roi_align import equal_grids


@kernel
def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Set `output` [K, C, height, width] to the means of the moved bins.

    A RoI that is too small to have a point gives 0.
    """
    feature, rois, shift = to_float(input, rois, offset)
    shift = gamma * _or_zeros(shift, output)
    output.zero_()
    for image, chosen, grid in _parts(rois, output.shape[2:], spatial_scale, sampling_ratio):
        pooled = _pool(feature[image], rois[chosen, 1:] * spatial_scale, shift[chosen], grid)
        output[chosen] = pooled.to(output.dtype)


@kernel
def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Add the gradients of `deform_roi_pool_forward` to `grad_input` and `grad_offset`."""
    grad, feature, rois, shift = to_float(grad_output, input, rois, offset)
    shift = gamma * _or_zeros(shift, grad)
    by_shift = torch.zeros_like(shift)
    for image, chosen, grid in _parts(rois, grad.shape[2:], spatial_scale, sampling_ratio):
        leaves = [x.detach().requires_grad_() for x in (feature[image], shift[chosen])]
        with torch.enable_grad():
            pooled = _pool(leaves[0], rois[chosen, 1:] * spatial_scale, leaves[1], grid)
        by_image, by_shift[chosen] = torch.autograd.grad(pooled, leaves, grad[chosen])
        grad_input[image] += by_image
    if offset.numel():
        grad_offset += gamma * by_shift


def _or_zeros(shift: Tensor, pooled: Tensor) -> Tensor:
    return shift if shift.numel() else shift.new_zeros(len(pooled), 2, *pooled.shape[2:])


def _parts(
    rois: Tensor, size: tuple[int, int], spatial_scale: float, sampling_ratio: int
) -> Iterator[tuple[int, Tensor, tuple[int, int]]]:
    """An image, the indices of RoIs of it, and the (rows, columns) of points in their bins."""
    images = rois[:, 0].long()
    for chosen, grid in equal_grids(rois, size, spatial_scale, sampling_ratio, aligned=True):
        for image in images[chosen].unique().tolist():
            yield image, chosen[images[chosen] == image], grid


def _pool(feature: Tensor, boxes: Tensor, shift: Tensor, grid: tuple[int, int]) -> Tensor:
    """The means [k, C, height, width] of the bins of boxes [k, 4] of one map [C, H, W].

    `shift` [k, 2, height, width] is (dx, dy) in units of the boxes' sides, `grid` the rows and
    columns of points of a bin.
    """
    bins = shift.shape[2:]
    x1, y1, x2, y2 = (boxes - 0.5)[:, :, None, None, None].unbind(1)
    dx, dy = shift[..., None].unbind(1)
    # [k, height, width, rows] and [k, height, width, columns]
    y = y1 + (y2 - y1) * (dy + _fractions(bins[0], grid[0], boxes)[:, None])
    x = x1 + (x2 - x1) * (dx + _fractions(bins[1], grid[1], boxes))
    points = torch.stack(torch.broadcast_tensors(x[..., None, :], y[..., :, None]), -1)
    points = points.flatten(3, 4).flatten(0, 2)  # [bins, points, 2]
    size = points.new_tensor(feature.shape[:0:-1])  # width, height
    # grid_sample puts the outer borders of the outermost pixels at -1 and 1.
    unit = (2 * points + 1) / size - 1
    values = F.grid_sample(feature[None], unit[None], padding_mode='border', align_corners=False)[0]
    inside = ((points >= -1) & (points <= size)).all(-1)
    return (values * inside).mean(-1).unflatten(1, (-1, *bins)).transpose(0, 1)


def _fractions(bins: int, points: int, like: Tensor) -> Tensor:
    """How far along a side, from 0 to 1, each point of each bin is: [bins, points]."""
    count = bins * points
    place = torch.arange(count, dtype=like.dtype, device=like.device) + 0.5
    return (place / count).view(bins, points)
