"""Instance masks that are cheap to send: from a loader's worker to the GPU as bits or polygons.

As they are, the masks of 16 images of 800 x 1333 pixels are a hundred megabytes: the training
process unpickles them, pads them by numpy, and copies them to the GPU image by image. The transform
that packs them is in `pack_masks`.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import mmcv
import numpy as np
import torch
from mmcv.image import io
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmdet.structures.mask.structures import BaseInstanceMasks

from ...detection import (
    PackedBitmaps,
    PackedMasks,
    cat_masks,
    mask_targets,
    pack_crops,
    pack_polygons,
)
from .bitmap_crops import FLIPS, crops_of, flipped_crops, resized_crops


def _as_unpacked(name: str):
    """Returns the method of that name of mmdet's masks, which unpacks them first."""

    def method(self, *args, **kwargs):
        return getattr(self.unpacked(), name)(*args, **kwargs)

    method.__name__ = name
    method.__doc__ = f'Does what `{name}` of mmdet does, of the unpacked masks.'
    return method


class PackedInstanceMasks(BaseInstanceMasks):
    """The packed masks of one image, with the methods and results of mmdet's masks.

    It is made as `PackedBitmapMasks` or `PackedPolygonMasks`, which mmdet takes for its own masks.
    Padding is free; bitmaps are resized and flipped within their boxes; mask targets are computed
    from what is packed. All else unpacks it.

    Args:
        masks: those of one image: packed, or what mmdet's class takes.
        height: of the image, with its padding.
        width: of the image, with its padding.
        batch: the masks of all images of a batch on the model's device, and which of them this is.
    """

    stock: ClassVar[type[BaseInstanceMasks]]  # mmdet's class

    def __init__(
        self,
        masks: PackedMasks | np.ndarray | list,
        height: int,
        width: int,
        batch: tuple[PackedMasks, int] | None = None,
    ):
        self.height, self.width, self.batch = height, width, batch
        is_packed = isinstance(masks, PackedMasks)
        self._packed = masks if is_packed else self._pack(self.stock(masks, height, width))
        self._unpacked = None  # once someone may write to it

    @classmethod
    def pack(cls, masks: BaseInstanceMasks) -> 'PackedInstanceMasks':
        """Packs mmdet's masks.

        Raises:
            TypeError: for masks that are neither bitmaps nor polygons.
        """
        if isinstance(masks, PackedInstanceMasks):
            return masks
        for kind in (PackedBitmapMasks, PackedPolygonMasks):
            if isinstance(masks, kind.stock):
                return kind(kind._pack(masks), masks.height, masks.width)
        raise TypeError(
            f'masks must be BitmapMasks or PolygonMasks to be packed, got {type(masks).__name__}'
        )

    @property
    def packed(self) -> PackedMasks:
        """The packed masks: packed again each time, once `masks` were handed out."""
        return self._packed if self._unpacked is None else self._pack(self._unpacked)

    @property
    def masks(self) -> np.ndarray | list:
        """mmdet's array or polygons, which may be written to; a `batch` is given up for them."""
        if self._unpacked is None:
            self._unpacked, self.batch = self.unpacked(), None
        return self._unpacked.masks

    @masks.setter
    def masks(self, masks: np.ndarray | list) -> None:
        self._unpacked, self.batch = self.stock(masks, self.height, self.width), None

    def __getstate__(self) -> dict:
        return {**vars(self), '_packed': self.packed, '_unpacked': None}

    def padded(self) -> PackedMasks:
        """Returns the packed masks of an image of this height and width."""
        return self.packed.padded([(self.height, self.width)])

    def unpacked(self) -> BitmapMasks | PolygonMasks:
        """Returns mmdet's masks."""
        return self._unpack() if self._unpacked is None else self._unpacked

    def __len__(self) -> int:
        return len(self._packed if self._unpacked is None else self._unpacked)

    def __iter__(self) -> Iterator:
        return iter(self.unpacked())

    def __getitem__(self, index) -> 'PackedInstanceMasks':
        return self.pack(self.unpacked()[index])

    def __repr__(self) -> str:
        return f'{type(self).__name__}({len(self)}, {self.height} x {self.width})'

    def pad(self, out_shape: tuple[int, int], pad_val: int = 0) -> BaseInstanceMasks:
        """Pads the masks as mmdet does, which with zeros is another height and width alone."""
        height, width = out_shape
        if pad_val or height < self.height or width < self.width:
            return self.unpacked().pad(out_shape, pad_val)
        return type(self)(self.packed, height, width)

    def rescale(
        self, scale: float | tuple[int, int], interpolation: str = 'nearest'
    ) -> BaseInstanceMasks:
        """Resizes the masks as large as a scale allows, as mmdet does."""
        width, height = mmcv.rescale_size((self.width, self.height), scale)
        return self.resize((height, width), interpolation)

    def crop_and_resize(
        self, bboxes, out_shape, inds, device='cpu', interpolation='bilinear', binarize=True
    ) -> BitmapMasks:
        """Returns the mask targets that mmdet computes of bitmaps or polygons."""
        if not len(self):
            return self.unpacked().crop_and_resize(bboxes, out_shape, inds, device)
        boxes = torch.as_tensor(bboxes).to(device)
        instances = torch.as_tensor(inds).to(device)
        images = torch.zeros_like(instances)
        # A box beyond the image is clipped by mmdet's mask heads, not here.
        limits = boxes.new_tensor([self.width, self.height] * 2)
        if not ((boxes >= 0) & (boxes <= limits)).all():
            arguments = bboxes, out_shape, inds, device, interpolation, binarize
            return self.unpacked().crop_and_resize(*arguments)
        packed = self.padded().to(device)
        targets = mask_targets(packed, boxes, images, instances, tuple(out_shape), binarize)
        return BitmapMasks((targets.bool() if binarize else targets).cpu().numpy(), *out_shape)

    @property
    def areas(self) -> np.ndarray:
        return self.unpacked().areas

    @classmethod
    def cat(cls, masks: Sequence[BaseInstanceMasks]) -> 'PackedInstanceMasks':
        """Joins masks of one image, packed or mmdet's.

        Raises:
            TypeError: if some are bitmaps and some polygons.
            ValueError: for no masks.
        """
        if not masks:
            raise ValueError('masks to join must be one or more, got none')
        if not are_of_one_kind(masks):
            names = ' and '.join(sorted({type(part).__name__ for part in masks}))
            raise TypeError(f'masks to join must be all bitmaps or all polygons, got {names}')
        packed = [cls.pack(part) for part in masks]
        return cls.pack(packed[0].stock.cat([part.unpacked() for part in packed]))

    resize = _as_unpacked('resize')
    flip = _as_unpacked('flip')
    crop = _as_unpacked('crop')
    expand = _as_unpacked('expand')
    translate = _as_unpacked('translate')
    shear = _as_unpacked('shear')
    rotate = _as_unpacked('rotate')
    get_bboxes = _as_unpacked('get_bboxes')
    to_ndarray = _as_unpacked('to_ndarray')
    to_tensor = _as_unpacked('to_tensor')


class PackedBitmapMasks(PackedInstanceMasks, BitmapMasks):
    """Packed bitmaps, in which what is not 0 becomes 1."""

    stock = BitmapMasks

    @staticmethod
    def _pack(masks: BitmapMasks) -> PackedBitmaps:
        return _pack_crops(*crops_of(masks.masks), (masks.height, masks.width))

    def _unpack(self) -> BitmapMasks:
        return BitmapMasks(self.padded().bitmaps().numpy(), self.height, self.width)

    def __getitem__(self, index) -> 'PackedBitmapMasks':
        crops, corners = self._crops()
        chosen = np.atleast_1d(np.arange(len(self))[index])
        crops, corners = ([part[i] for i in chosen] for part in (crops, corners))
        return self._with_crops(crops, corners, self.height, self.width)

    def resize(
        self, out_shape: tuple[int, int], interpolation: str = 'nearest'
    ) -> BaseInstanceMasks:
        """Resizes the masks as mmdet does: of the boxes, it picks the rows and columns."""
        if interpolation != 'nearest' or io.imread_backend != 'cv2':
            return self.unpacked().resize(out_shape, interpolation)
        size = self.height, self.width
        return self._with_crops(*resized_crops(*self._crops(), size, out_shape), *out_shape)

    def flip(self, flip_direction: str = 'horizontal') -> BaseInstanceMasks:
        """Flips the masks as mmdet does."""
        if flip_direction not in FLIPS:
            return self.unpacked().flip(flip_direction)
        size = self.height, self.width
        return self._with_crops(*flipped_crops(*self._crops(), size, flip_direction), *size)

    def _crops(self) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
        """Returns the pixels of the boxes that hold the masks, and the corners of the boxes."""
        packed = self.packed
        corners = [(left, top) for left, top, *_ in packed.table.tolist()]
        return [crop.numpy() for crop in packed.crops()], corners

    def _with_crops(
        self, crops: list[np.ndarray], corners: list, height: int, width: int
    ) -> 'PackedBitmapMasks':
        return type(self)(_pack_crops(crops, corners, (height, width)), height, width)


class PackedPolygonMasks(PackedInstanceMasks, PolygonMasks):
    """Packed polygons, held in fp64, as COCO's are read.

    mmdet rounds polygons of whole numbers whenever it scales them.
    """

    stock = PolygonMasks

    @staticmethod
    def _pack(masks: PolygonMasks) -> PackedMasks:
        polygons = [
            [torch.from_numpy(np.array(p, np.float64, order='C')) for p in mask]
            for mask in masks.masks
        ]
        return pack_polygons(polygons, (masks.height, masks.width))

    def _unpack(self) -> PolygonMasks:
        packed = self._packed
        vertices = packed.vertices.clone().flatten().numpy()  # which others may write to
        spans = packed.polygon_table.tolist()
        outlines = [vertices[2 * a : 2 * (a + n)] for a, n in spans]
        masks = [outlines[first : first + n] for first, n, *_ in packed.table.tolist()]
        return PolygonMasks(masks, self.height, self.width)

    to_bitmap = _as_unpacked('to_bitmap')


def _pack_crops(crops: list[np.ndarray], corners: list, size: tuple[int, int]) -> PackedBitmaps:
    tensors = [torch.from_numpy(crop.copy()) for crop in crops]
    return pack_crops(tensors, corners, size)


def are_of_one_kind(masks: Sequence[BaseInstanceMasks]) -> bool:
    """Tells whether all masks are bitmaps or all are polygons, packed or mmdet's."""
    return any(all(isinstance(m, kind) for m in masks) for kind in (BitmapMasks, PolygonMasks))


def packed_masks(masks: Sequence[BaseInstanceMasks], device: torch.device) -> PackedMasks:
    """Returns the masks of a batch on a device: as they were copied before, or by one copy.

    Args:
        masks: of each image, packed or mmdet's.
        device: where to have them.

    Raises:
        TypeError: if some are bitmaps and some polygons.
    """
    device = torch.device(device)
    batches = [getattr(part, 'batch', None) or (None, None) for part in masks]
    batch = batches[0][0]
    is_there = batch is not None and batch.device.type == device.type
    is_there = is_there and device.index in (None, batch.device.index)
    is_whole = is_there and len(batch.counts) == len(masks)
    if is_whole and all(b is batch and i == n for n, (b, i) in enumerate(batches)):
        return batch
    packed = [PackedInstanceMasks.pack(part) for part in masks]
    sizes = [(part.height, part.width) for part in packed]
    batch = cat_masks([part.packed for part in packed], sizes)
    if device.type == 'cuda':
        batch = batch.pin_memory()
    return batch.to(device, non_blocking=True)


def on_device(
    masks: Sequence[PackedInstanceMasks], device: torch.device
) -> list[PackedInstanceMasks]:
    """Copies the packed masks of a batch to a device, where `packed_masks` finds the results'.

    Raises:
        TypeError: if some are bitmaps and some polygons.
    """
    batch = packed_masks(masks, device)
    return [
        type(part)(part.packed, part.height, part.width, (batch, number))
        for number, part in enumerate(masks)
    ]
