"""The steps of detectors between their layers, for a whole batch at once. Takes torch alone.

None of them waits for the GPU: what differs between images, such as how many boxes there are, is
padded and told by counts or masks.
"""

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
from .max_iou import assign
from .nms import nms
from .paste_masks import paste_masks
from .roi_align import multilevel_roi_align
from .sampling import sample

__all__ = [
    'PackedBitmaps',
    'PackedMasks',
    'PackedPolygons',
    'assign',
    'cat_masks',
    'mask_targets',
    'multilevel_roi_align',
    'nms',
    'pack_bitmaps',
    'pack_crops',
    'pack_polygons',
    'paste_masks',
    'sample',
]
