"""Deformable convolution, without (v1) and with (v2) a modulation mask.

A convolution whose kernel points are moved, at each output position, by learned offsets, and read
bilinearly. `offset` is [N, deform groups * kH * kW * 2, outH, outW], each point's (dy, dx) in
pixels; `mask` is [N, deform groups * kH * kW, outH, outW]. `weight` is [out, in / groups, kH, kW].
Around the image the values are 0, and from one pixel outside on, -1 included, all gradients too.

Sources: Dai et al., arXiv 1703.06211; Zhu et al. (the mask), arXiv 1811.11168.

mmcv passes two scratch buffers and a number of images per step (`im2col_step`), by which its own
kernels bound their memory. torchvision's kernels look after themselves, so these are unused.

mmcv's kernels with a mask read offsets and mask as if they had the output's size, whatever size
they have; DyHead (arXiv 2106.08322) in mmdet passes larger ones. So what counts, of each image, is
as many of the first values in memory as there should be.
"""

import math

import torch
from torch import Tensor

from .kernel import kernel, to_float


@kernel
def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Set `output` [N, out, outH, outW] to the deformable convolution of `input` [N, in, H, W]."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    output.copy_(_forward(input, weight, offset, None, None, geometry))


@kernel
def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Add to `grad_input` and set `grad_offset`, the gradients by input and offsets."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    by_input, _, by_offset, _, _ = _backward(
        grad_output, input, weight, offset, None, None, geometry
    )
    grad_input += by_input
    grad_offset.copy_(by_offset)


@kernel
def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Add `scale` times the gradient by the weight to `grad_weight`."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    # torchvision computes all gradients at once, and this one does not depend on the weight's
    # values, only on its shape, which the gradient shares.
    _, by_weight, _, _, _ = _backward(grad_output, input, grad_weight, offset, None, None, geometry)
    grad_weight.add_(by_weight, alpha=scale)


@kernel
def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Set `output` [N, out, outH, outW] to the modulated deformable convolution of `input`."""
    geometry = (
        *(stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w),
        *(group, deformable_group),
    )
    offset, mask = (_first_values(x, output.shape[-2:]) for x in (offset, mask))
    output.copy_(_forward(input, weight, offset, mask, bias if with_bias else None, geometry))


@kernel
def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Add to the gradients by input, weight and bias; set those by offsets and mask."""
    geometry = (
        *(stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w),
        *(group, deformable_group),
    )
    offset, mask = (_first_values(x, grad_output.shape[-2:]) for x in (offset, mask))
    by_input, by_weight, by_offset, by_mask, by_bias = _backward(
        grad_output, input, weight, offset, mask, bias if with_bias else None, geometry
    )
    grad_input += by_input
    grad_weight += by_weight
    _set_first_values(grad_offset, by_offset)
    _set_first_values(grad_mask, by_mask)
    if with_bias:
        grad_bias += by_bias


def _first_values(x: Tensor, size: torch.Size) -> Tensor:
    """The first values of each image, as maps of this size."""
    shape = (*x.shape[:2], *size)
    return x if x.shape == shape else x.flatten(1)[:, : math.prod(shape[1:])].reshape(shape)


def _set_first_values(x: Tensor, values: Tensor) -> None:
    """Set the first values of each image and, to zero, those behind them."""
    flat = values.new_zeros(x.flatten(1).shape)
    flat[:, : values[0].numel()] = values.flatten(1)
    x.copy_(flat.view(x.shape))


def _forward(input, weight, offset, mask, bias, geometry) -> Tensor:
    input, weight, offset = to_float(input, weight, offset)
    mask, bias, masked = _mask_and_bias(input, weight, mask, bias)
    return torch.ops.torchvision.deform_conv2d(input, weight, offset, mask, bias, *geometry, masked)


def _backward(grad, input, weight, offset, mask, bias, geometry) -> tuple[Tensor, ...]:
    grad, input, weight, offset = to_float(grad, input, weight, offset)
    mask, bias, masked = _mask_and_bias(input, weight, mask, bias)
    gradients = torch.ops.torchvision._deform_conv2d_backward(
        grad, input, weight, offset, mask, bias, *geometry, masked
    )
    # At -1 exactly, where the slope has a step, torchvision takes that on the image's side.
    gradients[2].masked_fill_(_before_image(offset, weight.shape[2:], geometry), 0)
    return gradients


def _before_image(offset: Tensor, kernel: torch.Size, geometry) -> Tensor:
    """Where a point's row, or its column, is -1 or less: shaped as `offset`."""
    starts = []
    for axis in (0, 1):
        stride, pad, dilation = geometry[axis], geometry[2 + axis], geometry[4 + axis]
        point = torch.arange(kernel[axis], device=offset.device)[:, None]
        output = torch.arange(offset.shape[2 + axis], device=offset.device)
        starts.append(output * stride - pad + point * dilation)
    rows, columns = starts[0][:, None, :, None], starts[1][:, None, :]
    y, x = offset.unflatten(1, (-1, *kernel, 2)).unbind(4)
    return torch.stack((rows + y <= -1, columns + x <= -1), 4).view(offset.shape)


def _mask_and_bias(input, weight, mask, bias) -> tuple[Tensor, Tensor, bool]:
    """Mask and bias in the input's dtype, with what torchvision expects in place of a None."""
    masked = mask is not None
    mask = mask.to(input.dtype) if masked else input.new_zeros(len(input), 1)
    bias = bias.to(input.dtype) if bias is not None else input.new_zeros(len(weight))
    return mask, bias, masked
