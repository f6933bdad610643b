"""Convolution at some places of a map only: those where a mask is set.

What the kernel sees at these places becomes the columns of a matrix, which mmcv multiplies by the
weight, and the products are put back into the map. There is no backward: guided anchoring trains
with the whole convolution.

Source: Wang et al., Guided Anchoring, arXiv 1901.03278, section 3.4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernel import kernel


@kernel
def masked_im2col_forward(
    features: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    data_col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Set `data_col` [in * kH * kW, M] to what the kernel sees of `features` [1, in, H, W].

    `mask_h_idx` and `mask_w_idx` [M] are the rows and columns of the M places.
    """
    device = features.device
    padded = F.pad(features[0], (pad_w, pad_w, pad_h, pad_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=device)[:, None, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=device)[:, None]
    data_col.copy_(padded[:, rows, columns].view(data_col.shape))


@kernel
def masked_col2im_forward(
    masked_output: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    output: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Set `output` [1, out, H, W], at the M places alone, to `masked_output` [out, M]."""
    output[0][:, mask_h_idx, mask_w_idx] = masked_output.to(output.dtype)
