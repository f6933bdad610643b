"""The anchors of all levels in one tensor, and which of them count in each image."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from torch import Tensor

from ...detection.constants import may_keep

Sizes = tuple[tuple[int, int], ...]  # rows and columns of each level
KEPT = 8  # sizes whose anchors are kept


class Grid(NamedTuple):
    """The anchors of maps of certain sizes.

    Attributes:
        anchors: [N, 4], fp32, level by level, then by row, column and shape.
        corners: [2, N], x and y of the cells that they belong to, in pixels of the image.
        counts: how many anchors each level has.
        extent: the width and the height from which on an image covers all cells.
    """

    anchors: Tensor
    corners: Tensor
    counts: tuple[int, ...]
    extent: tuple[int, int]


class AnchorGrid:
    """Makes the anchors that an AnchorGenerator has for maps, and keeps those of the last sizes.

    Smaller maps have the first rows and columns of larger ones: nothing is computed anew, or copied
    to the GPU, for sizes below the largest so far.
    """

    def __init__(self, generator: AnchorGenerator):
        self.generator = generator
        self.grids: dict[tuple, Grid] = {}
        self.largest: dict[torch.device, list[tuple[Tensor, Tensor]]] = {}

    def __call__(self, sizes: Sequence[tuple[int, int]], device: torch.device) -> Grid:
        """Returns the anchors of maps of the given sizes, (rows, columns) of each level."""
        sizes = tuple(tuple(size) for size in sizes)
        key = sizes, device
        if not may_keep():
            with torch.no_grad():
                return self._make(sizes, self._make_largest(sizes, None, device))
        if key not in self.grids:
            if len(self.grids) >= KEPT:
                del self.grids[next(iter(self.grids))]
            with torch.inference_mode(False), torch.no_grad():
                self.grids[key] = self._make(sizes, self._largest(sizes, device))
        return self.grids[key]

    def _largest(self, sizes: Sizes, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        maps = self.largest.get(device)
        if maps is None or any(
            h > len(anchors) or w > anchors.shape[1]
            for (h, w), (anchors, _) in zip(sizes, maps, strict=True)
        ):
            maps = self.largest[device] = self._make_largest(sizes, maps, device)
        return maps

    def _make(self, sizes: Sizes, maps: list[tuple[Tensor, Tensor]]) -> Grid:
        parts, corners = [], []
        for (h, w), (anchors, corner) in zip(sizes, maps, strict=True):
            parts.append(anchors[:h, :w].reshape(-1, 4))
            corners.append(corner[:, :h, :w].reshape(2, -1))
        strides = self.generator.strides
        extent = tuple(
            max(
                (size[1 - i] - 1) * stride[i] + 1
                for size, stride in zip(sizes, strides, strict=True)
            )
            for i in range(2)
        )
        counts = tuple(len(part) for part in parts)
        return Grid(torch.cat(parts), torch.cat(corners, 1), counts, extent)

    def _make_largest(self, sizes, old, device) -> list[tuple[Tensor, Tensor]]:
        if old is not None:
            sizes = [
                (max(h, len(anchors)), max(w, anchors.shape[1]))
                for (h, w), (anchors, _) in zip(sizes, old, strict=True)
            ]
        levels = self.generator.grid_priors(sizes, dtype=torch.float32, device=device)
        result = []
        for (h, w), anchors, (x_stride, y_stride) in zip(
            sizes, levels, self.generator.strides, strict=True
        ):
            anchors = anchors.view(h, w, -1, 4)
            y = torch.arange(h, dtype=torch.float32, device=device)[:, None, None] * y_stride
            x = torch.arange(w, dtype=torch.float32, device=device)[:, None] * x_stride
            corners = [corner.expand(anchors.shape[:3]) for corner in (x, y)]
            result.append((anchors, torch.stack(corners)))
        return result


def valid_anchors(
    grid: Grid, sizes: Tensor, pad_sizes: list[tuple[int, int]], border: float
) -> Tensor | None:
    """Tells which anchors count in each image, as mmdet's valid_flags and anchor_inside_flags do.

    Args:
        sizes: [B, 4], the width and the height of each image when padded, then without padding.
        pad_sizes: the padded sizes, on the host.
        border: by how much an anchor may lie outside of its image; below 0, as it likes.

    Returns:
        [B, N], or None where all anchors count.
    """
    valid = None
    if any(w < grid.extent[0] or h < grid.extent[1] for w, h in pad_sizes):
        x, y = grid.corners
        valid = (x < sizes[:, :1]) & (y < sizes[:, 1:2])
    if border >= 0:
        x1, y1, x2, y2 = grid.anchors.unbind(1)
        is_inside = (x1 >= -border) & (y1 >= -border)
        is_inside = is_inside & (x2 < sizes[:, 2:3] + border) & (y2 < sizes[:, 3:] + border)
        valid = is_inside if valid is None else valid & is_inside
    return valid
