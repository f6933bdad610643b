"""Windows over a feature map, for any attention.

Windows tile the map from its top left corner. Where its size is no multiple of the window's, the
last window of a row or column is smaller: no padding is attended to, and no mask keeps fused
attention kernels from being used.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arithmetic import ceil_div, is_symbol

Attend = Callable[..., Tensor]  # (x [B, N, C], (h, w), mask [B, 1, 1, N] or None) -> [B, N, C']


class Tile(NamedTuple):
    """A part of a map: rows x columns of windows of one size."""

    rows: int
    height: int  # of a window
    columns: int
    width: int

    @property
    def window(self) -> tuple[int, int]:
        return self.height, self.width


class Windows:
    """The windows of a map (h, w), and the order of its tokens that keeps each window together.

    Whole windows and the smaller ones at the right and bottom edges make up to four tiles. In the
    order of the windows come the tokens of one tile behind those of another; in a tile, window
    behind window; in a window, row by row. So attention within windows takes slices of the tokens,
    and only a network's first and last block change the order.

    Args:
        grid: (h, w) of the map in tokens.
        size: side of the windows in tokens.

    Attributes:
        key: what the order depends on.
        heights, widths: of the tiles from top to bottom and from left to right, in tokens.
        tiles: the tiles, row by row.
        tokens: how many each tile has.
    """

    def __init__(self, grid: tuple[int, int], size: int):
        h, w = grid
        self.key = h, w, size
        self.heights, self.widths = _whole_and_rest(h, size), _whole_and_rest(w, size)
        self.tiles = [
            Tile(
                height // min(height, size),
                min(height, size),
                width // min(width, size),
                min(width, size),
            )
            for height in self.heights
            for width in self.widths
        ]
        self.tokens = [height * width for height in self.heights for width in self.widths]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each window, in their order."""
        return [
            tile.height * tile.width for tile in self.tiles for _ in range(tile.rows * tile.columns)
        ]

    def order(self, x: Tensor) -> Tensor:
        """Brings tokens x [B, h * w, C], row by row, into the order of the windows."""
        bands = x.unflatten(1, self.key[:2]).split(self.heights, 1)
        parts = [part for band in bands for part in band.split(self.widths, 2)]
        ordered = []
        for part, tile in zip(parts, self.tiles, strict=True):
            part = part.unflatten(2, tile[2:]).unflatten(1, tile[:2])
            ordered.append(part.transpose(2, 3).flatten(1, 4))
        return _concatenate(ordered, 1)

    def restore(self, x: Tensor) -> Tensor:
        """Brings tokens x [B, h * w, C] in the order of the windows into that of the map's rows."""
        parts = []
        for part, (rows, height, columns, width) in zip(self.split(x), self.tiles, strict=True):
            part = part.unflatten(1, (rows, columns, height, width)).transpose(2, 3)
            parts.append(part.flatten(3, 4).flatten(1, 2))
        side = len(self.widths)
        bands = [_concatenate(parts[i : i + side], 2) for i in range(0, len(parts), side)]
        return _concatenate(bands, 1).flatten(1, 2)

    def split(self, x: Tensor) -> Sequence[Tensor]:
        """Splits tokens x [B, h * w, C] in the order of the windows into those of each tile."""
        return x.split(self.tokens, 1) if len(self.tokens) > 1 else (x,)

    def attend(self, attend: Attend, x: Tensor) -> Tensor:
        """Attends within each window of tokens x [B, h * w, C] in the order of the windows.

        `attend` mixes the tokens of each of a batch of windows, and is called once for each tile.
        Returns [B, h * w, C'].
        """
        batch, _, channels = x.shape
        parts = []
        for part, tile in zip(self.split(x), self.tiles, strict=True):
            y = attend(part.reshape(-1, tile.height * tile.width, channels), tile.window)
            parts.append(y.reshape(batch, part.shape[1], y.shape[-1]))
        return _concatenate(parts, 1)


def windows_of(grid: tuple[int, int], size: int) -> Windows | None:
    """Returns the windows of a side in tokens; None without, or for a map whose size is a symbol.

    Symbols do not tell which smaller windows there are.
    """
    return None if not size or is_symbol(sum(grid)) else Windows(grid, size)


def attend_in_padded_windows(attend: Attend, x: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """Attends within windows of tokens x [B, h * w, C], row by row; returns [B, h * w, C'].

    For sizes that are symbols: the map is padded to whole windows, and a mask keeps the padding
    from being attended to.
    """
    h, w = grid
    rows, columns = ceil_div(h, size), ceil_div(w, size)
    padding = (0, columns * size - w, 0, rows * size - h)
    mask = F.pad(x.new_zeros(h, w), padding, value=-torch.inf)
    mask = mask.view(rows, size, columns, size).transpose(1, 2).reshape(-1, 1, 1, size * size)
    x = F.pad(x.view(-1, h, w, x.shape[-1]), (0, 0, *padding))
    batch, _, _, channels = x.shape
    windows = x.view(batch, rows, size, columns, size, channels).transpose(2, 3)
    y = attend(
        windows.reshape(-1, size * size, channels), (size, size), mask.repeat(batch, 1, 1, 1)
    )
    y = y.view(batch, rows, columns, size, size, -1).transpose(2, 3)
    return y.reshape(batch, rows * size, columns * size, -1)[:, :h, :w].flatten(1, 2)


def _whole_and_rest(length: int, window: int) -> list[int]:
    """Splits a length into what whole windows cover and the rest, leaving out what is empty."""
    rest = length % window
    return [size for size in (length - rest, rest) if size]


def _concatenate(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
