"""Decomposed relative positions in attention."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arithmetic import is_symbol


def relative_position_bias(
    q: Tensor, grid: tuple[int, int], table_h: Tensor, table_w: Tensor, stretch: bool
) -> Tensor:
    """Computes the bias q_i . (R^h[y_i - y_j] + R^w[x_i - x_j]) of the attention logits.

    (y_i, x_i) is the position of token i (MViTv2, arXiv 2112.01526, section 4.1). As in
    ViTDet (arXiv 2203.16527), the bias is not divided by the root of the head's dimensions.
    The logits of prefix tokens, which have no position, get no bias.

    Args:
        q: queries [B, heads, P + h * w, head_dims], behind P prefix tokens.
        grid: (h, w) of the map.
        table_h: vectors R^h [2 s - 1, head_dims] for distances -(s - 1) to s - 1.
        table_w: the same for R^w.
        stretch: interpolates a table made for another size to that of the grid; otherwise
            distances are looked up as they are and s must be at least the grid's size.

    Returns:
        The bias [B, heads, P + h * w, P + h * w].
    """
    h, w = grid
    prefix = q.shape[2] - h * w
    q = q[:, :, prefix:].unflatten(2, (h, w))
    along_h = torch.einsum('bnhwc,hkc->bnhwk', q, _vectors(table_h, h, stretch))
    along_w = torch.einsum('bnhwc,wkc->bnhwk', q, _vectors(table_w, w, stretch))
    bias = along_h[..., :, None] + along_w[..., None, :]
    return F.pad(bias.flatten(4, 5).flatten(2, 3), (prefix, 0, prefix, 0))


def _vectors(table: Tensor, size: int, stretch: bool) -> Tensor:
    """Vectors [size, size, head_dims] of each pair of a query's and a key's coordinate."""
    length = 2 * size - 1
    if is_symbol(length) or table.shape[0] != length:
        if stretch:
            table = F.interpolate(table.T[None], size=length, mode='linear')[0].T
        elif table.shape[0] > length:
            first = (table.shape[0] - length) // 2
            table = table[first : first + length]
        else:
            raise ValueError(
                f'relative positions of {table.shape[0]} distances cannot serve a window of size '
                f'{size}, which has {length}'
            )
    steps = torch.arange(size, device=table.device)
    return table[steps[:, None] - steps + size - 1]
