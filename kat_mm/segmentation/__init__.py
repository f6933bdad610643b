"""What keeps decode heads of semantic segmentation fast and reproducible. Takes torch alone."""

from .adaptive_pool import adaptive_avg_pool2d
from .upsample_argmax import upsample_argmax
from .upsample_bilinear import upsample_bilinear
from .upsample_cross_entropy import Statistics, upsample_cross_entropy

__all__ = [
    'Statistics',
    'adaptive_avg_pool2d',
    'upsample_argmax',
    'upsample_bilinear',
    'upsample_cross_entropy',
]
