"""CARAFE: upsampling in which every output pixel has a kernel of its own.

    output[n, c, y, x] = sum over i, j of  feature[n, c, y // s + i - r, x // s + j - r]
                                           * mask[n, (g * k + i) * k + j, y, x]

with the scale factor s, the kernel size k = 2 r + 1 and the group g of channel c; the feature is 0
outside the map. `features` are [N, C, H, W], `masks` [N, groups * k * k, s H, s W], output and its
gradient [N, C, s H, s W]; `group_size` is the number of groups.

Source: Wang et al., arXiv 1905.02188, equation 2.

mmcv has two kernels for the one function, each with an interface of its own. The buffers in which
the faster one rearranges tensors (`routput`, `rmasks`, `rgrad_...`) are unused. Here, points of the
kernel are taken one by one, which needs no memory for what all of them see.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernel import kernel, to_float


@kernel
def carafe_naive_forward(
    features: Tensor,
    masks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Set `output` to the upsampled features."""
    features, masks = to_float(features, masks)
    total = _split(features.new_zeros(output.shape), group_size, scale_factor)
    masks = _split(masks, group_size, scale_factor)
    padded = _pad(features, kernel_size)
    for point, window in _windows(features, kernel_size):
        total.addcmul_(_split(padded[window], group_size, 1), masks[:, :, point, None])
    output.copy_(total.view(output.shape))


@kernel
def carafe_naive_backward(
    grad_output: Tensor,
    features: Tensor,
    masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Set `grad_input` and `grad_masks`, the gradients by features and masks."""
    grad, features, masks = to_float(grad_output, features, masks)
    grad, masks = (_split(x, group_size, scale_factor) for x in (grad, masks))
    padded = _pad(features, kernel_size)
    by_padded, by_mask = torch.zeros_like(padded), torch.empty_like(masks)
    for point, window in _windows(features, kernel_size):
        by_mask[:, :, point] = (grad * _split(padded[window], group_size, 1)).sum(2)
        by_padded[window] += (grad * masks[:, :, point, None]).sum((4, 6)).view(features.shape)
    grad_input.copy_(F.pad(by_padded, [-(kernel_size // 2)] * 4))
    grad_masks.copy_(by_mask.view(grad_masks.shape))


@kernel
def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Set `output` to the upsampled features, and `rfeatures` to what `carafe_backward` needs."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


@kernel
def carafe_backward(
    grad_output: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rgrad_output: Tensor,
    rgrad_input_hs: Tensor,
    rgrad_input: Tensor,
    rgrad_masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Set `grad_input` and `grad_masks`; `rfeatures` are those of `carafe_forward`."""
    carafe_naive_backward(
        grad_output,
        rfeatures,
        masks,
        grad_input,
        grad_masks,
        kernel_size,
        group_size,
        scale_factor,
    )


def _split(x: Tensor, groups: int, scale: int) -> Tensor:
    """View of a map as [N, groups, channels, H, scale, W, scale]."""
    return x.unflatten(3, (-1, scale)).unflatten(2, (-1, scale)).unflatten(1, (groups, -1))


def _pad(features: Tensor, kernel_size: int) -> Tensor:
    return F.pad(features, [kernel_size // 2] * 4)


def _windows(features: Tensor, kernel_size: int) -> Iterator[tuple[int, tuple]]:
    """Each point of the kernel, and the index of what it sees of the padded features."""
    height, width = features.shape[2:]
    for point in range(kernel_size**2):
        i, j = divmod(point, kernel_size)
        yield point, (..., slice(i, i + height), slice(j, j + width))
