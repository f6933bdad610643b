"""Instance masks that are cheap to send: from a loader's worker to the GPU as bits or polygons.

`dict(type='PackMasks')` behind LoadAnnotations, or at the end of a pipeline, has mmdet's masks
packed in the workers. As they are, the masks of 16 images of 800 x 1333 pixels are a hundred
megabytes: the training process unpickles them, pads them by numpy, and copies them to the GPU image
by image.
"""

from collections.abc import Iterator, Sequence

import cv2
import mmcv
import numpy as np
import torch
from mmcv.image import io
from mmcv.transforms import BaseTransform
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmdet.structures.mask.structures import BaseInstanceMasks
from mmengine.registry import TRANSFORMS

from ...detection import (
    PackedBitmaps,
    PackedMasks,
    cat_masks,
    mask_targets,
    pack_crops,
    pack_polygons,
)

FLIPS = {  # sideways and upside down
    'horizontal': (True, False),
    'vertical': (False, True),
    'diagonal': (True, True),
}


def _as_unpacked(name: str):
    """Returns the method of that name of mmdet's masks, which unpacks them first."""

    def method(self, *args, **kwargs):
        return getattr(self.unpacked(), name)(*args, **kwargs)

    method.__name__ = name
    method.__doc__ = f'Does what `{name}` of mmdet does, of the unpacked masks.'
    return method


class PackedInstanceMasks(BaseInstanceMasks):
    """The packed masks of one image, with the methods and results of mmdet's masks.

    Padding is free; bitmaps are resized and flipped within their boxes; mask targets are computed
    from what is packed. All else unpacks it. Polygons are held in fp64, as COCO's are read: mmdet
    rounds those of whole numbers whenever it scales them.

    Args:
        packed: the masks, of one image.
        height: of the image, with its padding.
        width: of the image, with its padding.
        batch: the masks of all images of a batch on the model's device, and which of them this is.
    """

    def __init__(
        self,
        packed: PackedMasks,
        height: int,
        width: int,
        batch: tuple[PackedMasks, int] | None = None,
    ):
        self.packed, self.height, self.width, self.batch = packed, height, width, batch

    @classmethod
    def pack(cls, masks: BaseInstanceMasks) -> 'PackedInstanceMasks':
        """Packs mmdet's masks.

        Raises:
            TypeError: for masks that are neither bitmaps nor polygons.
        """
        if isinstance(masks, cls):
            return masks
        if isinstance(masks, BitmapMasks):
            packed = _pack_bitmaps(masks.masks)
        elif isinstance(masks, PolygonMasks):
            polygons = [[torch.from_numpy(np.asarray(p)) for p in mask] for mask in masks.masks]
            packed = pack_polygons(polygons, (masks.height, masks.width))
        else:
            raise TypeError(
                'masks must be BitmapMasks or PolygonMasks to be packed, got '
                f'{type(masks).__name__}'
            )
        return cls(packed, masks.height, masks.width)

    def padded(self) -> PackedMasks:
        """Returns the packed masks of an image of this height and width."""
        return self.packed.padded([(self.height, self.width)])

    def unpacked(self) -> BitmapMasks | PolygonMasks:
        """Returns mmdet's masks."""
        packed = self.packed
        size = self.height, self.width
        if isinstance(packed, PackedBitmaps):
            return BitmapMasks(self.padded().bitmaps().numpy(), *size)
        spans = packed.polygon_table.tolist()
        outlines = [packed.vertices[a : a + n].flatten().numpy().copy() for a, n in spans]
        masks = [outlines[first : first + n] for first, n, *_ in packed.table.tolist()]
        return PolygonMasks(masks, *size)

    def __len__(self) -> int:
        return len(self.packed)

    def __iter__(self) -> Iterator:
        return iter(self.unpacked())

    def __getitem__(self, index) -> 'PackedInstanceMasks':
        if not self._has_bitmaps:
            return self.pack(self.unpacked()[index])
        crops, corners = self._crops()
        chosen = np.atleast_1d(np.arange(len(self))[index])
        crops, corners = ([part[i] for i in chosen] for part in (crops, corners))
        return self._with_crops(crops, corners, self.height, self.width)

    def __repr__(self) -> str:
        kind = type(self.packed).__name__
        return f'{type(self).__name__}({kind}, {len(self)}, {self.height} x {self.width})'

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

    def resize(
        self, out_shape: tuple[int, int], interpolation: str = 'nearest'
    ) -> BaseInstanceMasks:
        """Resizes the masks as mmdet does: of the boxes, it picks the rows and columns."""
        if not (self._has_bitmaps and interpolation == 'nearest' and io.imread_backend == 'cv2'):
            return self.unpacked().resize(out_shape, interpolation)
        height, width = out_shape
        rows, columns = _picked(self.height, height), _picked(self.width, width)
        resized, corners = [], []
        for crop, (left, top) in zip(*self._crops(), strict=True):
            y = slice(*np.searchsorted(rows, (top, top + crop.shape[0])))
            x = slice(*np.searchsorted(columns, (left, left + crop.shape[1])))
            resized.append(crop[rows[y] - top][:, columns[x] - left])
            corners.append((x.start, y.start))
        return self._with_crops(resized, corners, height, width)

    def flip(self, flip_direction: str = 'horizontal') -> BaseInstanceMasks:
        """Flips the masks as mmdet does."""
        if not self._has_bitmaps or flip_direction not in FLIPS:
            return self.unpacked().flip(flip_direction)
        sideways, upside_down = FLIPS[flip_direction]
        flipped, corners = [], []
        for crop, (left, top) in zip(*self._crops(), strict=True):
            if sideways:
                crop, left = crop[:, ::-1], self.width - left - crop.shape[1]
            if upside_down:
                crop, top = crop[::-1], self.height - top - crop.shape[0]
            flipped.append(crop)
            corners.append((left, top))
        return self._with_crops(flipped, corners, self.height, self.width)

    @property
    def _has_bitmaps(self) -> bool:
        return isinstance(self.packed, PackedBitmaps)

    def _crops(self) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
        """Returns the pixels of the boxes that hold the masks, and the corners of the boxes."""
        crops = [crop.numpy() for crop in self.packed.crops()]
        return crops, [(left, top) for left, top, *_ in self.packed.table.tolist()]

    def _with_crops(
        self, crops: list[np.ndarray], corners: list, height: int, width: int
    ) -> 'PackedInstanceMasks':
        tensors = [torch.from_numpy(crop.copy()) for crop in crops]
        return type(self)(pack_crops(tensors, corners, (height, width)), height, width)

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
    def masks(self) -> np.ndarray | list:
        return self.unpacked().masks

    @property
    def areas(self) -> np.ndarray:
        return self.unpacked().areas

    @classmethod
    def cat(cls, masks: Sequence['PackedInstanceMasks']) -> 'PackedInstanceMasks':
        stock = [part.unpacked() for part in masks]
        return cls.pack(type(stock[0]).cat(stock))

    crop = _as_unpacked('crop')
    expand = _as_unpacked('expand')
    translate = _as_unpacked('translate')
    shear = _as_unpacked('shear')
    rotate = _as_unpacked('rotate')
    get_bboxes = _as_unpacked('get_bboxes')
    to_bitmap = _as_unpacked('to_bitmap')
    to_ndarray = _as_unpacked('to_ndarray')
    to_tensor = _as_unpacked('to_tensor')


def _picked(side: int, resized: int) -> np.ndarray:
    """Returns which rows or columns of an image mmcv picks to resize it without interpolation."""
    numbers = np.arange(side, dtype=np.float32)[None]
    return mmcv.imresize(numbers, (resized, 1), interpolation='nearest')[0].astype(np.int64)


def _pack_bitmaps(bitmaps: np.ndarray) -> PackedBitmaps:
    """Packs the masks of an image as `pack_bitmaps` does, with boxes that OpenCV finds faster."""
    if bitmaps.dtype not in (np.uint8, bool):
        bitmaps = bitmaps != 0
    crops, corners = [], []
    for mask in bitmaps.view(np.uint8):
        left, top, width, height = cv2.boundingRect(mask)
        crop = torch.from_numpy(mask[top : top + height, left : left + width])
        crops.append(crop != 0)
        corners.append((left, top))
    return pack_crops(crops, corners, bitmaps.shape[1:])


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
    """Copies the packed masks of a batch to a device, where `packed_masks` finds the results'."""
    batch = packed_masks(masks, device)
    return [
        PackedInstanceMasks(part.packed, part.height, part.width, (batch, number))
        for number, part in enumerate(masks)
    ]


@TRANSFORMS.register_module()
class PackMasks(BaseTransform):
    """Packs the masks of a sample.

    Behind LoadAnnotations, Resize and RandomFlip then work on less. Behind PackDetInputs it suits
    every pipeline: other transforms may look for mmdet's own classes of masks.
    """

    def transform(self, results: dict) -> dict:
        if 'gt_masks' in results:
            results['gt_masks'] = PackedInstanceMasks.pack(results['gt_masks'])
        sample = results.get('data_samples', {})
        for name in ('gt_instances', 'ignored_instances'):
            instances = sample.get(name)
            if instances is not None and 'masks' in instances:
                instances.masks = PackedInstanceMasks.pack(instances.masks)
        return results
