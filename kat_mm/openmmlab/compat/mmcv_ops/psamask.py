"""The attention masks of PSANet (Zhao et al., ECCV 2018): windows laid out over the whole map.

At each position p, `input` [N, h_mask * w_mask, H, W] holds a value for every position q of a
window around p. The output [N, H * W, H, W] holds it in channel q at p where p collects
(psa_type 0), and in channel p at q where p distributes (psa_type 1). It is zero elsewhere.
"""

import torch
from torch import Tensor

from .kernel import kernel

DISTRIBUTE = 1


@kernel
def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Set `output` to the values of the windows, each at its place on the map."""
    sizes = (h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask)
    index, outside = _places(*sizes, input.device)
    values = input.flatten(2).gather(1, index.expand(num_, -1, -1)).masked_fill_(outside, 0)
    output.copy_((values.mT if psa_type == DISTRIBUTE else values).reshape(output.shape))


@kernel
def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Set `grad_input` to the gradient by the values of the windows."""
    sizes = (h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask)
    index, outside = _places(*sizes, grad_output.device)
    grad = grad_output.flatten(2)
    grad = (grad.mT if psa_type == DISTRIBUTE else grad).masked_fill(outside, 0)
    by_window = grad.new_zeros(num_, h_mask * w_mask, h_feature * w_feature)
    by_window.scatter_add_(1, index.expand(num_, -1, -1), grad)
    grad_input.copy_(by_window.view(grad_input.shape))


def _places(
    h_feature: int, w_feature: int, h_mask: int, w_mask: int, half_h: int, half_w: int, device
) -> tuple[Tensor, Tensor]:
    """Where in the window of p each q lies, and which q lie outside it: both [q, p]."""
    y, x = (torch.arange(size, device=device) for size in (h_feature, w_feature))
    row = (y[:, None] - y + half_h)[:, None, :, None]
    column = (x[:, None] - x + half_w)[None, :, None, :]
    outside = (row < 0) | (row >= h_mask) | (column < 0) | (column >= w_mask)
    index = row.clamp(0, h_mask - 1) * w_mask + column.clamp(0, w_mask - 1)
    count = h_feature * w_feature
    return index.reshape(count, count), outside.reshape(count, count)
