"""Multi-scale deformable attention: each query reads a few points of every feature level.

    output[n, q, h] = sum over levels l and points p of  weight[n, q, h, l, p] * value_l[n, h] at
                      location[n, q, h, l, p]

Source: Zhu et al., Deformable DETR, arXiv 2010.04159, equation 3.

`value` [N, S, heads, dim] holds the levels one after the other, each flattened by rows;
`spatial_shapes` int64 [levels, 2] their (height, width), `level_start_index` int64 [levels] where
they begin. `sampling_loc` [N, Q, heads, levels, points, 2] are (x, y) with (0, 0) and (1, 1) the
corners of the map; outside it the value is 0. `attn_weight` is [N, Q, heads, levels, points].
`im2col_step`, by which mmcv's kernel bounds its memory, is unused: the levels are taken one by one.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernel import kernel, to_float


@kernel
def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    im2col_step: int,
) -> Tensor:
    """The attended values [N, Q, heads * dim], in the dtype of `value`."""
    wide, location, weight = to_float(value, sampling_loc, attn_weight)
    output = wide.new_zeros(len(wide), location.shape[1], *wide.shape[2:])
    for level, part, shape in _levels(spatial_shapes, level_start_index):
        output += _attend(wide[:, part], shape, location[:, :, :, level], weight[:, :, :, level])
    return output.flatten(2).to(value.dtype)


@kernel
def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Add to `grad_value`, and set `grad_sampling_loc` and `grad_attn_weight`.

    `grad_output` [N, Q, heads * dim]. Each level is computed anew for its gradient, so that only
    one level's samples are in memory at a time.
    """
    wide, location, weight, grad = to_float(value, sampling_loc, attn_weight, grad_output)
    grad = grad.unflatten(2, wide.shape[2:])
    for level, part, shape in _levels(spatial_shapes, level_start_index):
        leaves = [wide[:, part], location[:, :, :, level], weight[:, :, :, level]]
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        with torch.enable_grad():
            output = _attend(leaves[0], shape, *leaves[1:])
        by_value, by_location, by_weight = torch.autograd.grad(output, leaves, grad)
        # At -1 pixel exactly, where the slope has a step, grid_sample takes that on the map's side.
        pixel = leaves[1] * leaves[1].new_tensor(shape[::-1]) - 0.5
        by_location.masked_fill_(pixel <= -1, 0)
        grad_value[:, part] += by_value
        grad_sampling_loc[:, :, :, level] = by_location.to(grad_sampling_loc.dtype)
        grad_attn_weight[:, :, :, level] = by_weight.to(grad_attn_weight.dtype)


def _levels(
    spatial_shapes: Tensor, level_start_index: Tensor
) -> Iterator[tuple[int, slice, tuple[int, int]]]:
    """Each level's number, its place among the values and its (height, width)."""
    shapes = spatial_shapes.tolist()
    for level, (start, shape) in enumerate(zip(level_start_index.tolist(), shapes, strict=True)):
        yield level, slice(start, start + shape[0] * shape[1]), tuple(shape)


def _attend(value: Tensor, shape: tuple[int, int], location: Tensor, weight: Tensor) -> Tensor:
    """The share of one level in the output, [N, Q, heads, dim].

    `value` [N, height * width, heads, dim], `location` [N, Q, heads, points, 2], `weight`
    [N, Q, heads, points].
    """
    batch, _, heads, dim = value.shape
    image = value.permute(0, 2, 3, 1).reshape(batch * heads, dim, *shape)
    # grid_sample puts the corners at -1 and 1.
    grid = 2 * location.transpose(1, 2).flatten(0, 1) - 1
    sampled = F.grid_sample(image, grid, align_corners=False)  # [N * heads, dim, Q, points]
    attended = (sampled * weight.transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
    return attended.unflatten(0, (batch, heads)).permute(0, 3, 1, 2)
