"""Bitmaps of instances as the pixels of their boxes: found, resized and flipped as whole masks are.

A crop is uint8 or bool [height, width]; its corner is the left and top of its box in the image.
"""

from collections.abc import Sequence

import cv2
import mmcv
import numpy as np

Crops = list[np.ndarray]
Corners = list[tuple[int, int]]

FLIPS = {  # sideways and upside down
    'horizontal': (True, False),
    'vertical': (False, True),
    'diagonal': (True, True),
}


def crops_of(bitmaps: np.ndarray) -> tuple[Crops, Corners]:
    """Returns the smallest boxes that hold the masks, by OpenCV.

    Args:
        bitmaps: [instances, H, W], of any dtype: what is not 0 is of the instance.
    """
    if bitmaps.dtype not in (np.uint8, bool):
        bitmaps = bitmaps != 0
    crops, corners = [], []
    for mask in np.ascontiguousarray(bitmaps).view(np.uint8):
        left, top, width, height = cv2.boundingRect(mask)
        crops.append(mask[top : top + height, left : left + width] != 0)
        corners.append((left, top))
    return crops, corners


def resized_crops(
    crops: Crops, corners: Corners, size: tuple[int, int], resized: tuple[int, int]
) -> tuple[Crops, Corners]:
    """Resizes masks without interpolation: picks the rows and columns that mmcv picks of an image.

    Args:
        crops: pixels of the boxes.
        corners: of the boxes.
        size: height and width of the image.
        resized: its new height and width.
    """
    if not crops:
        return [], []
    rows, columns = (_picked(*sides) for sides in zip(size, resized, strict=True))
    results, places = [], []
    for crop, (left, top) in zip(crops, corners, strict=True):
        y = slice(*np.searchsorted(rows, (top, top + crop.shape[0])))
        x = slice(*np.searchsorted(columns, (left, left + crop.shape[1])))
        results.append(crop[rows[y] - top][:, columns[x] - left])
        places.append((x.start, y.start))
    return results, places


def _picked(side: int, resized: int) -> np.ndarray:
    """Returns which rows or columns of an image mmcv picks to resize it without interpolation."""
    numbers = np.arange(side, dtype=np.float32)[None]
    return mmcv.imresize(numbers, (resized, 1), interpolation='nearest')[0].astype(np.int64)


def flipped_crops(
    crops: Crops, corners: Corners, size: Sequence[int], direction: str
) -> tuple[Crops, Corners]:
    """Flips masks of an image of a height and width; the direction is one of `FLIPS`."""
    sideways, upside_down = FLIPS[direction]
    height, width = size
    results, places = [], []
    for crop, (left, top) in zip(crops, corners, strict=True):
        if sideways:
            crop, left = crop[:, ::-1], width - left - crop.shape[1]
        if upside_down:
            crop, top = crop[::-1], height - top - crop.shape[0]
        results.append(crop)
        places.append((left, top))
    return results, places
