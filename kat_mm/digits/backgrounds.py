"""Cluttered backgrounds that hold nothing a reader would take for a digit."""

from __future__ import annotations

import cv2
import numpy as np

# cv2 draws shapes at sub-pixel positions when coordinates carry this many fractional bits.
SHIFT = 4


def background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a random background, uint8 [height, width, 3].

    A colour gradient, filled shapes, lines from edge to edge, dots, smooth noise and sometimes
    stripes. Shapes are filled and about as long as wide, and lines leave the image at both ends:
    rings and short strokes would be 0s and 1s without an annotation.
    """
    side = min(height, width)
    base = rng.uniform(30, 130, 3)  # dim, as the digits are bright
    # Shapes stay near the gradient's colours, so that digits, not clutter, stand out most.
    image = _smooth(base + rng.uniform(-30, 30, (*rng.integers(2, 5, 2), 3)), height, width)
    image = np.clip(image, 0, 255).astype(np.uint8)
    for _ in range(rng.integers(3, 8)):
        _draw_filled_shape(rng, image, side, _near(rng, base))
    for _ in range(rng.integers(1, 5)):
        _draw_line(rng, image, side, _near(rng, base))
    for _ in range(rng.integers(0, 25)):
        _draw_dot(rng, image, side, _near(rng, base))
    return np.clip(image + _texture(rng, height, width, side), 0, 255).astype(np.uint8)


def _smooth(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a coarse grid of values spread smoothly over an image, float32 [height, width, C]."""
    image = cv2.resize(grid.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return image.reshape(height, width, -1)


def _near(rng: np.random.Generator, base: np.ndarray) -> list[float]:
    return np.clip(base + rng.uniform(-55, 55, 3), 0, 255).tolist()


def _fixed_point(points: np.ndarray) -> np.ndarray:
    return np.rint(points * (1 << SHIFT)).astype(np.int32)


def _draw_filled_shape(rng, image, side, colour) -> None:
    """Fill an ellipse (a polygon of many corners) or a polygon of 3 to 6 corners."""
    corners = 40 if rng.random() < 0.5 else rng.integers(3, 7)
    turn = rng.uniform(0, 2 * np.pi)
    around = turn + np.arange(corners) * (2 * np.pi / corners)
    radius = rng.uniform(0.04, 0.25) * side
    axes = radius * np.array([1, rng.uniform(0.65, 1)])
    centre = rng.uniform(0, 1, 2) * image.shape[1::-1]
    points = centre + axes * np.stack([np.cos(around), np.sin(around)], 1)
    cv2.fillPoly(image, [_fixed_point(points)], colour, cv2.LINE_AA, SHIFT)


def _draw_line(rng, image, side, colour) -> None:
    """Draw a bent line that enters and leaves the image."""
    height, width = image.shape[:2]
    across = rng.uniform(-0.2, 1.2, 3)  # where it starts, bends to and ends, across its direction
    along = np.linspace(-0.1, 1.1, 24)
    t = np.linspace(0, 1, 24)
    bend = (1 - t) ** 2 * across[0] + 2 * t * (1 - t) * across[1] + t**2 * across[2]
    points = np.stack([along, bend] if rng.random() < 0.5 else [bend, along], 1) * (width, height)
    thickness = max(1, round(rng.uniform(0.005, 0.03) * side))
    cv2.polylines(image, [_fixed_point(points)], False, colour, thickness, cv2.LINE_AA, SHIFT)


def _draw_dot(rng, image, side, colour) -> None:
    centre = _fixed_point(rng.uniform(0, 1, 2) * image.shape[1::-1]).tolist()
    radius = int(_fixed_point(max(1.5, rng.uniform(0.005, 0.02) * side)))
    cv2.circle(image, centre, radius, colour, cv2.FILLED, cv2.LINE_AA, SHIFT)


def _texture(rng, height, width, side) -> np.ndarray:
    """Return brightness changes, float32 [height, width, 1]: two octaves of noise, and stripes."""
    texture = np.zeros((height, width, 1), np.float32)
    for cells in (4, 12):
        grid = np.ceil([cells * height / side, cells * width / side]).astype(int)
        texture += _smooth(rng.normal(0, rng.uniform(2, 10), grid), height, width)
    if rng.random() < 0.4:
        turn = rng.uniform(0, np.pi)
        waves = 2 * np.pi * rng.uniform(4, 16) / side
        across = waves * np.cos(turn) * np.arange(width, dtype=np.float32)
        down = waves * np.sin(turn) * np.arange(height, dtype=np.float32)
        texture[..., 0] += rng.uniform(3, 10) * np.sin(across[None, :] + down[:, None])
    return texture
