"""The steps of detectors between their layers, for a whole batch at once. Takes torch alone.

None of them waits for the GPU: what differs between images, such as how many boxes there are, is
padded and told by counts or masks.
"""

from .levels import decode_boxes, merge_levels, top_k
from .max_iou import assign
from .nms import nms
from .sampling import sample

__all__ = ['assign', 'decode_boxes', 'merge_levels', 'nms', 'sample', 'top_k']
