"""What keeps the heads of detectors fast and reproducible. Takes torch alone."""

from .mask_targets import mask_targets
from .masks import (
    PackedBitmaps,
    PackedMasks,
    PackedPolygons,
    cat_masks,
    pack_bitmaps,
    pack_crops,
    pack_polygons,
)

__all__ = [
    'PackedBitmaps',
    'PackedMasks',
    'PackedPolygons',
    'cat_masks',
    'mask_targets',
    'pack_bitmaps',
    'pack_crops',
    'pack_polygons',
]
