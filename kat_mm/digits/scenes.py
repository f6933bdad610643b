"""Digit scenes: images of several handwritten digits with exact instance masks."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .backgrounds import background
from .source_digits import SPLITS, draw_glyph, glyph, split_indices

# A digit's height as a share of the image's short side: 23 to 51 pixels of 128.
HEIGHTS = (0.18, 0.4)
# The digits are 8x8 images: drawn smaller than this they cannot be read.
MIN_HEIGHT = 8
MIN_SIDE = 32
# Degrees; a 6 turned further begins to look like a 9.
MAX_ANGLE = 25

# The least share of a digit that the digits in front of it leave visible.
MIN_VISIBLE = 0.75
# The most that two digits' boxes overlap (intersection over union). Detectors merge boxes that
# overlap more, at 0.5 in most configs.
MAX_BOX_IOU = 0.3

# Hue, saturation and value of a digit, least and greatest: chalk on a darker ground. Where digits
# may be brighter or darker than the ground, a small model learns them far more slowly.
CHALK = ((0, 0, 0.8), (1, 0.6, 1))
# A digit's colour differs from what lies around it by this much, where one can be found that does;
# Euclidean, on a scale of 0..255.
MIN_CONTRAST = 90
# Standard deviation of the brightness noise over the whole image, at most, on a scale of 0..255.
MAX_GRAIN = 5

# How often a digit is placed anew before the layout is, and a layout before giving up.
PLACEMENTS = 40
LAYOUTS = 20


@dataclass(frozen=True)
class SceneSpec:
    """What all scenes of a data set have in common.

    ``size`` is (height, width) in pixels; digits scale with the shorter side. Each scene holds
    ``min_digits`` to ``max_digits`` digits, uniformly.

    Raises:
        TypeError: a value is not an integer.
        ValueError: a value out of range; the text names it and the range.
    """

    size: tuple[int, int] = (128, 128)
    seed: int = 0
    min_digits: int = 2
    max_digits: int = 6

    def __post_init__(self):
        try:
            height, width = self.size
        except (TypeError, ValueError):
            raise TypeError(f'size must be (height, width), not {self.size!r}') from None
        values = {
            'height': height,
            'width': width,
            'seed': self.seed,
            'min_digits': self.min_digits,
            'max_digits': self.max_digits,
        }
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise TypeError(f'{name} must be an integer, not {value!r}')
        # Plain integers of one kind compare and serialise alike, whatever the caller had.
        object.__setattr__(self, 'size', (int(height), int(width)))
        for name in ('seed', 'min_digits', 'max_digits'):
            object.__setattr__(self, name, int(values[name]))
        if min(self.size) < MIN_SIDE:
            raise ValueError(
                f'an image of {height}x{width} (height x width) is too small for digits that can '
                f'be read; each side must be at least {MIN_SIDE} pixels'
            )
        if self.seed < 0:
            raise ValueError(f'seed must be 0 or more, not {self.seed}')
        if not 0 <= self.min_digits <= self.max_digits or self.max_digits < 1:
            raise ValueError(
                f'a scene cannot hold {self.min_digits} to {self.max_digits} digits; '
                f'0 <= min_digits <= max_digits and max_digits >= 1 must hold'
            )
        if self.max_digits > self.capacity:
            raise ValueError(
                f'max_digits={self.max_digits} digits do not fit an image of {height}x{width}; '
                f'choose at most {self.capacity}, or a wider image'
            )

    @property
    def heights(self) -> tuple[float, float]:
        """The least and the greatest height of a digit, in pixels."""
        low, high = (share * min(self.size) for share in HEIGHTS)
        return max(low, MIN_HEIGHT), max(high, MIN_HEIGHT)

    @property
    def capacity(self) -> int:
        """How many digits of medium height, boxes side by side, cover the image."""
        height, width = self.size
        return int(height * width / (sum(self.heights) / 2) ** 2)


@dataclass(frozen=True)
class Scene:
    """An image and the digits in it; N digits, later ones in front of earlier ones.

    ``image`` is uint8 [H, W, 3] in OpenCV's channel order (BGR). ``instances`` is uint16 [H, W]:
    0 for background, k + 1 where digit k is what one sees. ``labels`` [N] are the digits' classes
    0..9, ``sources`` [N] their indices into ``source_digits.load_digits()``, and ``visible`` [N]
    the share of each digit's area that the digits in front of it leave uncovered.
    """

    image: np.ndarray
    instances: np.ndarray
    labels: np.ndarray
    sources: np.ndarray
    visible: np.ndarray

    def mask(self, k: int) -> np.ndarray:
        """Return the visible pixels of digit ``k``, bool [H, W]."""
        return self.instances == k + 1

    def label_map(self) -> np.ndarray:
        """Return every pixel's class, uint8 [H, W]: 0 for background, class + 1 for a digit."""
        return np.concatenate([[0], self.labels + 1]).astype(np.uint8)[self.instances]


class _Placed(NamedTuple):
    alpha: np.ndarray  # opacity, float32 [h, w]
    window: tuple[slice, slice]  # its rows and columns in the image
    label: int
    source: int


def render_scene(spec: SceneSpec, split: str, index: int) -> Scene:
    """Return scene number ``index`` of a split: the same pixels for the same arguments, always.

    Scenes draw on random streams of their own, keyed by (seed, split, index), so none depends on
    how many there are. Every digit that is drawn is annotated and at least ``MIN_VISIBLE`` of it
    can be seen: a place that would hide another digit too much is never taken, so nothing drawn
    has to be left out of the annotations.

    Raises:
        ValueError: an unknown split or a negative index.
        ImportError: scikit-learn, which carries the digits, is missing.
    """
    split_indices(split)  # refuses an unknown split
    if index < 0:
        raise ValueError(f'scene index must be 0 or more, not {index}')
    rng = np.random.default_rng([spec.seed, SPLITS.index(split), index])
    image = background(rng, *spec.size).astype(np.float32)
    count = int(rng.integers(spec.min_digits, spec.max_digits + 1))
    layout = _lay_out(rng, spec, split, count)
    for digit in layout.placed:
        patch = image[digit.window]
        colour = _contrasting_colour(rng, patch)
        patch += digit.alpha[..., None] * (colour - patch)
    grain = rng.uniform(1, MAX_GRAIN) * rng.standard_normal((*spec.size, 1), np.float32)
    image = np.clip(np.rint(image + grain), 0, 255).astype(np.uint8)

    return Scene(
        image=image,
        instances=layout.instances,
        labels=np.array([digit.label for digit in layout.placed], np.int64),
        sources=np.array([digit.source for digit in layout.placed], np.int64),
        visible=layout.seen[1:] / layout.full[1:],
    )


class _Layout:
    """Digits from back to front, the instance map that they make, and their areas."""

    def __init__(self, size: tuple[int, int], count: int):
        self.placed: list[_Placed] = []
        self.instances = np.zeros(size, np.uint16)
        # Areas in pixels by instance number; entry 0 stands for the background.
        self.full = np.zeros(count + 1, np.int64)
        self.seen = np.zeros(count + 1, np.int64)

    def add(self, digit: _Placed) -> bool:
        """Put a digit in front of the others, unless it would hide too much of one."""
        if any(_box_iou(digit.window, other.window) > MAX_BOX_IOU for other in self.placed):
            return False
        mask = digit.alpha > 0.5
        behind = self.instances[digit.window]
        seen = self.seen - np.bincount(behind[mask], minlength=len(self.seen))
        if (seen[1:] < MIN_VISIBLE * self.full[1:]).any():
            return False
        self.placed.append(digit)
        number = len(self.placed)
        behind[mask] = number
        self.full[number] = seen[number] = np.count_nonzero(mask)
        self.seen = seen
        return True


def _lay_out(rng: np.random.Generator, spec: SceneSpec, split: str, count: int) -> _Layout:
    """Return a random layout of ``count`` digits; where they don't fit, they become smaller."""
    low, high = spec.heights
    for attempt in range(LAYOUTS):
        heights = low, high - (high - low) * attempt / LAYOUTS
        layout = _Layout(spec.size, count)
        while len(layout.placed) < count and _place_one(rng, split, heights, layout):
            pass
        if len(layout.placed) == count:
            return layout
    raise RuntimeError(
        f'{count} digits found no place in an image of {spec.size[0]}x{spec.size[1]}; '
        f'lower max_digits={spec.max_digits}'
    )


def _place_one(
    rng: np.random.Generator, split: str, heights: tuple[float, float], layout: _Layout
) -> bool:
    """Add one random digit to ``layout``; return whether a place was found."""
    label = int(rng.integers(10))  # drawn once, so that crowding does not favour narrow digits
    for _ in range(PLACEMENTS):
        source = int(rng.choice(split_indices(split)[label]))
        height, angle = rng.uniform(*heights), rng.uniform(-MAX_ANGLE, MAX_ANGLE)
        alpha = draw_glyph(glyph(source), height, angle)
        rows, cols = alpha.shape
        top, left = rng.integers(np.array(layout.instances.shape) - alpha.shape + 1)
        window = slice(int(top), int(top) + rows), slice(int(left), int(left) + cols)
        if layout.add(_Placed(alpha, window, label, source)):
            return True
    return False


def _box_iou(a: tuple[slice, slice], b: tuple[slice, slice]) -> float:
    """Return the intersection over union of two windows."""
    overlap = 1
    for one, other in zip(a, b, strict=True):
        overlap *= max(0, min(one.stop, other.stop) - max(one.start, other.start))
    areas = [(rows.stop - rows.start) * (cols.stop - cols.start) for rows, cols in (a, b)]
    return overlap / (sum(areas) - overlap)


def _contrasting_colour(rng: np.random.Generator, patch: np.ndarray) -> np.ndarray:
    """Return a random colour that stands out from nearly all of ``patch``, float32 [3]."""
    step = max(1, min(patch.shape[:2]) // 12)
    around = patch[::step, ::step].reshape(-1, 3)
    best, best_contrast = None, -1.0
    for _ in range(12):
        hue, saturation, value = rng.uniform(*CHALK)
        colour = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)
        distances = np.sort(np.sqrt(((around - colour) ** 2).sum(1)))
        contrast = distances[len(distances) // 20]  # a few pixels alike do no harm
        if contrast > best_contrast:
            best, best_contrast = colour, contrast
        if contrast >= MIN_CONTRAST:
            break
    return best
