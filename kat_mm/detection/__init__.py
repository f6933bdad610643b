"""What keeps detectors fast and reproducible. Takes torch alone."""

from .roi_align import multilevel_roi_align

__all__ = ['multilevel_roi_align']
