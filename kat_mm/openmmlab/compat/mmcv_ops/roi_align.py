"""RoIAlign: features of fixed size from boxes of any size, with mean or maximum pooling.

Each RoI is cut into aligned_height x aligned_width bins; every bin is sampled bilinearly on a
regular grid of points and pooled. `rois` [K, 5] holds (image index, x1, y1, x2, y2) in units of
the image, which `spatial_scale` turns into units of the feature map. `sampling_ratio` is the
number of points along a side of a bin; 0 or less makes it ceil(bin size), so that no pixel is
jumped over. `aligned` shifts the boxes by half a pixel, to pixel centres.

Source: He et al., Mask R-CNN, arXiv 1703.06870, section 3.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ....detection import multilevel_roi_align
from ....detection.roi_align import MAX_SIDE
from ....rational.torch_internals import has_kernel
from .kernel import kernel, to_float

_MAX, _MEAN = 0, 1


@kernel
def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pool `input` [N, C, H, W] over `rois` [K, 5] into `output` [K, C, height, width].

    `pool_mode` is 1 for the mean, 0 for the maximum. The maximum also sets `argmax_y` and
    `argmax_x`, shaped as the output: row and column, within the bin's grid, of the point that
    won. (Small integers, which 16-bit buffers keep exactly; they would round coordinates.)
    A RoI that is too small to have a point gives 0.
    """
    feature, rois = to_float(input, rois)
    size = aligned_height, aligned_width
    if pool_mode == _MEAN:
        if _has_own_kernel(feature, size):
            levels = torch.zeros(len(rois), dtype=torch.int64, device=rois.device)
            pooled = multilevel_roi_align(
                [feature], rois, levels, size, [spatial_scale], sampling_ratio, aligned
            )
        else:
            pooled = torch.ops.torchvision.roi_align(
                feature, rois, spatial_scale, *size, sampling_ratio, aligned
            )
        output.copy_(pooled)
        return
    output.zero_()
    for chosen, (rows, columns) in equal_grids(rois, size, spatial_scale, sampling_ratio, aligned):
        # One bin per point: the points themselves, ready for an ordinary maximum pooling.
        points = torch.ops.torchvision.roi_align(
            feature,
            rois[chosen],
            spatial_scale,
            aligned_height * rows,
            aligned_width * columns,
            1,
            aligned,
        )
        maximum, index = F.max_pool2d(points, (rows, columns), return_indices=True)
        output[chosen] = maximum.to(output.dtype)
        width = aligned_width * columns
        argmax_y[chosen] = (index // width % rows).to(argmax_y.dtype)
        argmax_x[chosen] = (index % width % columns).to(argmax_x.dtype)


@kernel
def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add the gradient of `roi_align_forward` to `grad_input` [N, C, H, W].

    `grad_output` [K, C, height, width]; `argmax_y` and `argmax_x` as the forward left them.
    """
    grad, rois = to_float(grad_output, rois)
    size = aligned_height, aligned_width
    if pool_mode == _MEAN and _has_own_kernel(grad, size):
        levels = torch.zeros(len(rois), dtype=torch.int64, device=rois.device)
        batch, channels, *sides = grad_input.shape
        (grad_map,) = torch.ops.kat_mm.multilevel_roi_align_backward.default(
            grad,
            rois,
            levels,
            [batch, channels, *sides, 0],
            1.0,
            [spatial_scale],
            sampling_ratio,
            aligned,
        )
        grad_input += grad_map
        return
    if pool_mode == _MEAN:
        grad_input += torch.ops.torchvision._roi_align_backward(
            grad,
            rois,
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
        return
    bin_y = torch.arange(aligned_height, device=grad.device)[:, None]
    bin_x = torch.arange(aligned_width, device=grad.device)
    for chosen, (rows, columns) in equal_grids(rois, size, spatial_scale, sampling_ratio, aligned):
        height, width = aligned_height * rows, aligned_width * columns
        y = bin_y * rows + argmax_y[chosen].long()
        x = bin_x * columns + argmax_x[chosen].long()
        bins = grad[chosen]
        points = bins.new_zeros(*bins.shape[:2], height * width)
        points.scatter_(2, (y * width + x).flatten(2), bins.flatten(2))
        grad_input += torch.ops.torchvision._roi_align_backward(
            points.unflatten(2, (height, width)),
            rois[chosen],
            spatial_scale,
            height,
            width,
            *grad_input.shape,
            1,
            aligned,
        )


def _has_own_kernel(x: Tensor, size: tuple[int, int]) -> bool:
    """Whether kat_mm's op pools on this device: its backward has the same bits in each run."""
    fits = x.is_cuda and x.dtype == torch.float32 and x.numel() > 0 and max(size) <= MAX_SIDE
    return fits and has_kernel('kat_mm::multilevel_roi_align', 'CUDA')


def equal_grids(
    rois: Tensor,
    size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """The RoIs' indices, grouped by the (rows, columns) of points in their bins."""
    if sampling_ratio > 0:
        yield torch.arange(len(rois), device=rois.device), (sampling_ratio, sampling_ratio)
        return
    corners = rois[:, [2, 1, 4, 3]] * spatial_scale - (0.5 if aligned else 0.0)
    sides = corners[:, 2:] - corners[:, :2]
    if not aligned:
        sides = sides.clamp(min=1)
    grids = (sides / sides.new_tensor(size)).ceil().long()
    distinct, group = torch.unique(grids, dim=0, return_inverse=True)
    for i, (rows, columns) in enumerate(distinct.tolist()):
        if rows > 0 and columns > 0:
            yield (group == i).nonzero().squeeze(1), (rows, columns)
