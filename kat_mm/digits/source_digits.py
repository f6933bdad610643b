"""The handwritten digits that scenes are drawn from, and their split by use."""

from __future__ import annotations

import functools
from typing import NamedTuple

import cv2
import numpy as np

CLASSES = tuple('0123456789')
SPLITS = ('train', 'val')

# Every fifth digit of each class is kept for validation.
VAL_EVERY = 5

# A glyph is the 8x8 image on a finer grid: CELL points per source pixel, BORDER empty source pixels
# around it so that the smoothed strokes fade out before the edge.
CELL = 8
BORDER = 2

# Ink at or above this share of the darkest pixel belongs to the digit. Lower, and the loops of 6, 8
# and 9 close; higher, and thin strokes break (at 0.4, six of the 1,797 are in two pieces).
INK = 0.4


class Glyph(NamedTuple):
    """A digit as a smooth scalar field whose contour at ``INK`` is the digit's outline.

    ``field`` is float32 [h, w]; ``box`` is the outline's (x0, y0, x1, y1) in the field's pixels,
    the last two exclusive.
    """

    field: np.ndarray
    box: tuple[int, int, int, int]


@functools.cache
def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's 1,797 handwritten digits: images [1797, 8, 8] in 0..1, classes [1797].

    They are the test set of Optical Recognition of Handwritten Digits (E. Alpaydin and C. Kaynak,
    UCI Machine Learning Repository, 1998), which scikit-learn carries in its package.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as sklearn_load_digits
    except ImportError as error:
        raise ImportError(
            f'digit scenes are drawn from the digits that scikit-learn carries, and it cannot be '
            f'imported ({error}); install it with: pip install scikit-learn'
        ) from error
    digits = sklearn_load_digits()
    return (digits.images / 16).astype(np.float32), digits.target.astype(np.int64)


@functools.cache
def split_indices(split: str) -> tuple[np.ndarray, ...]:
    """Return, for each class 0..9, the indices into ``load_digits()`` that ``split`` draws from.

    The splits are disjoint, cover all digits and hold the same share of every class.

    Raises:
        ValueError: ``split`` is not one of ``SPLITS``.
    """
    if split not in SPLITS:
        raise ValueError(f'unknown split {split!r}; choose one of {", ".join(SPLITS)}')
    _, classes = load_digits()
    per_class = []
    for label in range(len(CLASSES)):
        indices = np.flatnonzero(classes == label)
        for_val = np.arange(len(indices)) % VAL_EVERY == VAL_EVERY - 1
        per_class.append(indices[for_val if split == 'val' else ~for_val])
    return tuple(per_class)


def glyph(index: int) -> Glyph:
    """Return digit ``index`` of ``load_digits()`` as a smooth field that scales to any size."""
    image = load_digits()[0][index]
    cells = np.zeros([extent + 2 * BORDER for extent in image.shape], np.float32)
    cells[BORDER:-BORDER, BORDER:-BORDER] = image / image.max()
    field = cv2.resize(cells, None, fx=CELL, fy=CELL, interpolation=cv2.INTER_CUBIC)
    # Cubic interpolation leaves ripples along slanted strokes; a blur of a fifth of a cell
    # removes them.
    field = cv2.GaussianBlur(field, (0, 0), CELL / 5)
    rows, cols = np.flatnonzero((field > INK).any(1)), np.flatnonzero((field > INK).any(0))
    box = (int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1)
    return Glyph(field, box)


def draw_glyph(source: Glyph, height: float, angle: float) -> np.ndarray:
    """Return the opacity of a digit of ``height`` pixels, turned by ``angle`` degrees.

    The result is float32 [h, w] in 0..1, trimmed to where it shows. The digit is where it
    exceeds 0.5; the outline fades over one to two pixels at any size. ``height`` is that of the
    upright digit; positive angles turn counter-clockwise.
    """
    x0, y0, x1, y1 = source.box
    scale = height / (y1 - y0)
    turn = cv2.getRotationMatrix2D(((x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2), angle, scale)
    corners = np.array([[x, y, 1] for x in (x0, x1 - 1) for y in (y0, y1 - 1)]) @ turn.T
    margin = 2 + scale  # the soft outline, and the field's own pixel
    low = np.floor(corners.min(0) - margin)
    width_out, height_out = (np.ceil(corners.max(0) + margin) - low + 1).astype(int).tolist()
    turn[:, 2] -= low
    field = cv2.warpAffine(source.field, turn, (width_out, height_out), flags=cv2.INTER_LINEAR)
    # The field falls from 1 to 0 over about one source pixel, which is scale * CELL pixels here. In
    # the smallest digits the outline fades faster than that asks for, to reach 0 where no ink is.
    steepness = max(0.7 * scale * CELL, 0.5 / INK)
    alpha = np.clip((field - INK) * steepness + 0.5, 0, 1)
    drawn = alpha > 1 / 255  # less changes no 8-bit colour
    rows, cols = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    return alpha[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
