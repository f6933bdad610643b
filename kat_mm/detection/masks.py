"""Instance masks of a batch in one small tensor: as the bits of their boxes, or as polygons.

A mask of an 800 x 1333 image takes a megabyte as bytes. The bits within its box take some
kilobytes, its polygons fewer: they are cheap to send between processes, and one asynchronous copy
brings those of a batch to a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

WORD = 64  # bits
Masks = TypeVar('Masks', bound='PackedMasks')


@dataclass(frozen=True)
class PackedMasks:
    """The masks of the instances of some images, in one tensor.

    They never change, so that a deep copy, as a detector makes of its samples in each step, is the
    masks themselves.

    Attributes:
        buffer: int64 [n]; first the first instance of each image, then the rows of `table`, then
            what the masks are made of.
        counts: the number of instances of each image.
    """

    buffer: Tensor
    counts: tuple[int, ...]

    columns: ClassVar[int]
    shifts: ClassVar[int]  # the column that counts through what masks are made of

    def __len__(self) -> int:
        return sum(self.counts)

    def __deepcopy__(self: Masks, memo: dict) -> Masks:
        return self

    @property
    def device(self) -> torch.device:
        return self.buffer.device

    @property
    def starts(self) -> Tensor:
        """The first instance of each image, int64 [images]."""
        return self.buffer[: len(self.counts)]

    @property
    def table(self) -> Tensor:
        """A row for each instance, int64 [instances, columns]; ends with its image's H and W."""
        return self.buffer[len(self.counts) : self._end_of_table].view(-1, self.columns)

    @property
    def _end_of_table(self) -> int:
        return len(self.counts) + len(self) * self.columns

    def to(self: Masks, device, non_blocking: bool = False) -> Masks:
        """Copies the masks to a device; from pinned memory, the copy may be asynchronous."""
        return self._with(self.buffer.to(device, non_blocking=non_blocking))

    def pin_memory(self: Masks) -> Masks:
        return self._with(self.buffer.pin_memory())

    def _with(self: Masks, buffer: Tensor) -> Masks:
        return self if buffer is self.buffer else type(self)(**{**vars(self), 'buffer': buffer})

    def padded(self: Masks, sizes: Sequence[tuple[int, int]]) -> Masks:
        """Returns the masks with other heights and widths of their images, which hold no more."""
        masks = self._with(self.buffer.clone())
        masks._resize(sizes)
        return masks

    def _resize(self, sizes: Sequence[tuple[int, int]]) -> None:
        rows = [size for size, count in zip(sizes, self.counts, strict=True) for _ in range(count)]
        if rows:
            self.table[:, -2:] = torch.tensor(rows)


@dataclass(frozen=True)
class PackedBitmaps(PackedMasks):
    """Masks as the bits of the smallest boxes that hold them.

    The columns of `table` are left, top, width and height of the box, and its first word; the bits
    of a box lie row by row, the first one lowest, and begin at a word.
    """

    columns = 7
    shifts = 4

    @property
    def words(self) -> Tensor:
        """The bits, int64 [words]."""
        return self.buffer[self._end_of_table :]

    def crops(self) -> list[Tensor]:
        """Returns the pixels of each box, uint8 [height, width] of 0 and 1."""
        octets = self.words.view(torch.uint8)[:, None]
        bits = octets.bitwise_right_shift(torch.arange(8, device=self.device).byte())
        bits = bits.bitwise_and_(1).flatten()
        return [
            bits[first * WORD :][: width * height].view(height, width)
            for _, _, width, height, first, *_ in self.table.tolist()
        ]

    def bitmaps(self) -> Tensor:
        """Returns the masks in full size, uint8 [instances, H, W]; images must be of one size."""
        rows = self.table.tolist()
        masks = self.buffer.new_zeros(
            len(rows), *(rows[0][-2:] if rows else (0, 0)), dtype=torch.uint8
        )
        for mask, crop, (left, top, width, height, *_) in zip(
            masks, self.crops(), rows, strict=True
        ):
            mask[top : top + height, left : left + width] = crop
        return masks


@dataclass(frozen=True)
class PackedPolygons(PackedMasks):
    """Masks as polygons, whose union is the mask.

    The columns of `table` are the first polygon and the number of polygons.

    Attributes:
        polygons: the number of polygons.
    """

    polygons: int

    columns = 4
    shifts = 0

    @property
    def polygon_table(self) -> Tensor:
        """The first vertex of each polygon and the number of its vertices, int64 [polygons, 2]."""
        return self.buffer[self._end_of_table : self._end_of_polygons].view(-1, 2)

    @property
    def vertices(self) -> Tensor:
        """x and y of each vertex in pixels, fp64 [vertices, 2]."""
        return self.buffer[self._end_of_polygons :].view(torch.float64).view(-1, 2)

    @property
    def _end_of_polygons(self) -> int:
        return self._end_of_table + 2 * self.polygons


def pack_bitmaps(bitmaps: Tensor) -> PackedBitmaps:
    """Packs the masks of an image, [instances, H, W]: what is not 0 is of the instance."""
    masks = bitmaps != 0
    rows, columns = masks.any(2).tolist(), masks.any(1).tolist()
    crops, corners = [], []
    for mask, in_row, in_column in zip(masks, rows, columns, strict=True):
        (top, bottom), (left, right) = _extent(in_row), _extent(in_column)
        crops.append(mask[top:bottom, left:right])
        corners.append((left, top))
    return pack_crops(crops, corners, bitmaps.shape[1:])


def _extent(flags: list[bool]) -> tuple[int, int]:
    """Returns where the first flag that is set lies, and the place behind the last; or nothing."""
    if True not in flags:
        return 0, 0
    return flags.index(True), len(flags) - flags[::-1].index(True)


def pack_crops(
    crops: Sequence[Tensor], corners: Sequence[tuple[int, int]], size: tuple[int, int]
) -> PackedBitmaps:
    """Packs the masks of an image of which each is 0 outside a box.

    Args:
        crops: the pixels of each box, [height, width], of 0 and 1.
        corners: left and top of each box.
        size: height and width of the image.
    """
    words = [_pack_bits(crop) for crop in crops]
    firsts = [0, *accumulate(map(len, words))]
    rows = [
        [*corner, crop.shape[1], crop.shape[0], first, *size]
        for crop, corner, first in zip(crops, corners, firsts, strict=False)
    ]
    buffer = [torch.tensor([0, *chain(*rows)], dtype=torch.int64), *words]
    return PackedBitmaps(torch.cat(buffer), (len(rows),))


def _pack_bits(crop: Tensor) -> Tensor:
    bits = torch.zeros(-(-crop.numel() // WORD) * WORD, dtype=torch.uint8)
    bits[: crop.numel()] = crop.reshape(-1)
    octets = (bits.view(-1, 8) << torch.arange(8).byte()).sum(1, dtype=torch.uint8)
    return octets.view(torch.int64)


def pack_polygons(instances: Sequence[Sequence[Tensor]], size: tuple[int, int]) -> PackedPolygons:
    """Packs the masks of an image.

    Args:
        instances: the polygons of each instance, each [2 n] of x0, y0, x1, y1, ... in pixels.
        size: height and width of the image.
    """
    polygons = [polygon for instance in instances for polygon in instance]
    firsts = [0, *accumulate(len(instance) for instance in instances)]
    rows = [
        [first, len(instance), *size] for first, instance in zip(firsts, instances, strict=False)
    ]
    lengths = [len(polygon) // 2 for polygon in polygons]
    places = zip([0, *accumulate(lengths)], lengths, strict=False)
    head = torch.tensor([0, *chain(*rows), *chain(*places)])
    vertices = [polygon.to(torch.float64) for polygon in polygons]
    buffer = [
        head.to(torch.int64),
        *(polygon.contiguous().view(torch.int64) for polygon in vertices),
    ]
    return PackedPolygons(torch.cat(buffer), (len(rows),), len(polygons))


def cat_masks(parts: Sequence[Masks], sizes: Sequence[tuple[int, int]] | None = None) -> Masks:
    """Joins the masks of several images, all as bitmaps or all as polygons.

    Args:
        parts: masks of one image or more each.
        sizes: other heights and widths of the images, which hold no more.

    Raises:
        TypeError: if some are bitmaps and some polygons.
    """
    kinds = {type(part) for part in parts}
    if len(kinds) != 1:
        names = ' and '.join(sorted(kind.__name__ for kind in kinds)) or 'none'
        raise TypeError(f'cat_masks: masks of a batch must be of one kind, got {names}')
    (kind,) = kinds
    counts = tuple(count for part in parts for count in part.counts)
    starts = parts[0].buffer.new_tensor([0, *accumulate(counts)][:-1])
    tables = [part.table for part in parts]
    if kind is PackedBitmaps:
        words = [part.words for part in parts]
        table = _joined(tables, kind.shifts, words)
        masks = kind(torch.cat([starts, table.flatten(), *words]), counts)
    else:
        vertices = [part.vertices for part in parts]
        polygons = [part.polygon_table for part in parts]
        table, outlines = _joined(tables, kind.shifts, polygons), _joined(polygons, 0, vertices)
        flat = table.flatten(), outlines.flatten(), torch.cat(vertices).flatten().view(torch.int64)
        masks = kind(torch.cat([starts, *flat]), counts, len(outlines))
    if sizes is not None:
        masks._resize(sizes)
    return masks


def _joined(tables: Sequence[Tensor], column: int, payloads: Sequence[Tensor]) -> Tensor:
    """Joins tables whose column counts on through the payloads."""
    joined = torch.cat(list(tables))
    before = [0, *accumulate(map(len, payloads))]
    shifts = [
        shift for shift, table in zip(before, tables, strict=False) for _ in range(len(table))
    ]
    joined[:, column] += joined.new_tensor(shifts)
    return joined
