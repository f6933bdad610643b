"""Windows over a feature map, for any attention.

Windows tile the map from its top left corner. Where its size is no multiple of the window's, the
last window of a row or column is smaller: no padding is attended to, and no mask keeps fused
attention kernels from being used.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arithmetic import ceil_div, is_symbol

Attend = Callable[..., Tensor]  # (x [B, N, C], (h, w), mask [B, 1, 1, N] or None) -> [B, N, C']


def attend_in_windows(attend: Attend, x: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """Attends within each window of tokens x [B, h * w, C], without prefix tokens.

    Whole windows and the smaller ones at the right and bottom edges make up to four tiles, for
    each of which `attend` is called once.

    Args:
        attend: mixes the tokens of each of a batch of windows.
        x: tokens of the map, row by row.
        grid: (h, w) of the map.
        size: side of the windows in tokens.

    Returns:
        The result [B, h * w, C'].
    """
    h, w = grid
    x = x.view(-1, h, w, x.shape[-1])
    if is_symbol(h + w):
        return _padded_windows(attend, x, size).flatten(1, 2)
    bands = []
    for band in x.split(_tile_sizes(h, size), 1):
        tiles = band.split(_tile_sizes(w, size), 2)
        bands.append(_concatenate([_attend_tile(attend, tile, size) for tile in tiles], 2))
    return _concatenate(bands, 1).flatten(1, 2)


def _padded_windows(attend: Attend, x: Tensor, size: int) -> Tensor:
    """Attends within the windows of a map x [B, h, w, C]; returns [B, h, w, C'].

    For sizes that are symbols, as these do not tell which smaller windows there are: the map is
    padded to whole ones, and a mask keeps the padding from being attended to.
    """
    h, w = x.shape[1:3]
    padding = (0, ceil_div(w, size) * size - w, 0, ceil_div(h, size) * size - h)
    mask = F.pad(x.new_zeros(h, w), padding, value=-torch.inf)
    return _attend_tile(attend, F.pad(x, (0, 0, *padding)), size, mask)[:, :h, :w]


def _attend_tile(attend: Attend, tile: Tensor, size: int, mask: Tensor | None = None) -> Tensor:
    """Attends within the equal windows of a tile [B, th, tw, C]; returns [B, th, tw, C'].

    A mask [th, tw], which a tile of whole windows may have, is added to the keys' logits.
    """
    batch, h, w, _ = tile.shape
    sh = sw = size
    if mask is None:
        sh, sw = min(h, sh), min(w, sw)
    else:
        mask = mask.view(h // sh, sh, w // sw, sw).transpose(1, 2).reshape(-1, 1, 1, sh * sw)
        mask = mask.repeat(batch, 1, 1, 1)
    windows = tile.view(batch, h // sh, sh, w // sw, sw, -1).transpose(2, 3)
    y = attend(windows.reshape(-1, sh * sw, tile.shape[-1]), (sh, sw), mask)
    y = y.view(batch, h // sh, w // sw, sh, sw, -1).transpose(2, 3)
    return y.reshape(batch, h, w, -1)


def _tile_sizes(length: int, window: int) -> list[int]:
    """Splits a length into what whole windows cover and the rest, leaving out what is empty."""
    rest = length % window
    return [size for size in (length - rest, rest) if size]


def _concatenate(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
