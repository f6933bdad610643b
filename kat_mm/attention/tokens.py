"""The tokens that parameters of an attention are made for, and maps of other sizes."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Tokens(NamedTuple):
    """`prefix` tokens, such as a class token, then those of a map (h, w), row by row."""

    prefix: int
    grid: tuple[int, int]

    @property
    def count(self) -> int:
        return self.prefix + self.grid[0] * self.grid[1]

    def crop(self, x: Tensor, dim: int, grid: tuple[int, int]) -> Tensor:
        """Returns the entries along `dim`, one for each token, of the upper left of the map."""
        if tuple(grid) == self.grid:
            return x
        prefix, on_map = self._split(x, dim)
        return self._join(prefix, on_map[..., : grid[0], : grid[1]], dim)

    def resize(self, x: Tensor, dim: int, grid: tuple[int, int]) -> Tensor:
        """Returns the entries for a map of another size, interpolated bilinearly as images are.

        Prefix tokens keep theirs.
        """
        if tuple(grid) == self.grid:
            return x
        prefix, on_map = self._split(x, dim)
        flat = on_map.reshape(1, -1, *self.grid)
        flat = F.interpolate(flat, grid, mode='bilinear', align_corners=False)
        return self._join(prefix, flat.view(*on_map.shape[:-2], *grid), dim)

    def _split(self, x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        x = x.movedim(dim, -1)
        return x[..., : self.prefix], x[..., self.prefix :].unflatten(-1, self.grid)

    @staticmethod
    def _join(prefix: Tensor, on_map: Tensor, dim: int) -> Tensor:
        return torch.cat([prefix, on_map.flatten(-2)], -1).movedim(-1, dim)
