"""A picture of some scenes of a data set on disk, with everything that is annotated drawn in."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from .source_digits import CLASSES

# RGB, as configs give palettes: one colour a class, easy to tell apart and none of them grey.
PALETTE = (
    (230, 25, 75),
    (60, 180, 75),
    (255, 225, 25),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (210, 245, 60),
    (0, 128, 128),
)

BACKGROUND = (32, 32, 32)
GAP = 8
TILE = 256  # the long side of a drawn scene, in pixels


def contact_sheet(root: str | Path, split: str, scenes: int = 12, columns: int = 6) -> np.ndarray:
    """Return a sheet of the first ``scenes`` scenes of a split, uint8 [H, W, 3] in BGR.

    Each scene is shown three times, from top to bottom: the image alone, the image with the COCO
    annotations (box, mask outline and tint, class), and the label map. All is read from the files,
    so the sheet shows what training sees.

    Raises:
        FileNotFoundError: a file of the data set is missing; the text names it.
        ValueError: the split holds no scene.
    """
    root = Path(root)
    coco = json.loads((root / 'annotations' / f'{split}.json').read_text())
    annotations = by_image(coco['annotations'])
    cells = []
    for entry in coco['images'][:scenes]:
        image = read_image(root / 'images' / split / entry['file_name'])
        labels = read_image(root / 'labels' / split / entry['file_name'], cv2.IMREAD_UNCHANGED)
        tiles = (
            enlarge(image),
            draw_annotations(image, annotations.get(entry['id'], [])),
            draw_labels(labels),
        )
        cells.append(stack([frame(tile, 1) for tile in tiles], axis=0))
    if not cells:
        raise ValueError(f'{root} has no {split} scene to show')
    blank = np.full_like(cells[0], 255)
    rows = []
    for start in range(0, len(cells), columns):
        row = cells[start : start + columns]
        if rows:  # the last row may be short
            row += [blank] * (columns - len(row))
        rows.append(stack([frame(cell, GAP) for cell in row], axis=1))
    return frame(stack(rows, axis=0), GAP)


def by_image(annotations: list[dict]) -> dict[int, list[dict]]:
    """Return COCO annotations or results by the id of their image."""
    result: dict[int, list[dict]] = {}
    for annotation in annotations:
        result.setdefault(annotation['image_id'], []).append(annotation)
    return result


def draw_annotations(image: np.ndarray, annotations: list[dict]) -> np.ndarray:
    """Return an enlarged image with tinted masks, their outlines, boxes and class names."""
    canvas = enlarge(image)
    factor = canvas.shape[1] / image.shape[1]
    for annotation in annotations:
        colour = np.array(PALETTE[annotation['category_id'] - 1][::-1], np.float32)
        mask = enlarge(coco_mask.decode(annotation['segmentation']))
        canvas[mask > 0] = (0.4 * canvas[mask > 0] + 0.6 * colour).astype(np.uint8)
        outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outlines, -1, (255, 255, 255), 1, cv2.LINE_AA)
    for annotation in annotations:  # above all masks
        colour = PALETTE[annotation['category_id'] - 1][::-1]
        x, y, width, height = np.rint(np.array(annotation['bbox']) * factor).astype(int).tolist()
        cv2.rectangle(canvas, (x, y), (x + width - 1, y + height - 1), colour, 1)
        _draw_name(canvas, CLASSES[annotation['category_id'] - 1], x, y, colour)
    return canvas


def draw_labels(labels: np.ndarray) -> np.ndarray:
    """Return an enlarged label map in the colours of the classes."""
    return enlarge(np.array([BACKGROUND, *PALETTE], np.uint8)[labels][..., ::-1])


def _draw_name(canvas: np.ndarray, text: str, x: int, y: int, colour: tuple[int, ...]) -> None:
    """Write ``text`` on a chip of ``colour`` on top of (x, y), or below it at the image's edge."""
    font, scale, pad = cv2.FONT_HERSHEY_SIMPLEX, 0.45, 3
    (width, height), _ = cv2.getTextSize(text, font, scale, 1)
    top = y - height - 2 * pad
    if top < 0:
        top = y
    left = min(x, canvas.shape[1] - width - 2 * pad)
    bottom_right = (left + width + 2 * pad - 1, top + height + 2 * pad - 1)
    cv2.rectangle(canvas, (left, top), bottom_right, colour, cv2.FILLED)
    ink = (0, 0, 0) if np.dot(colour, (0.114, 0.587, 0.299)) > 110 else (255, 255, 255)
    cv2.putText(canvas, text, (left + pad, top + height + pad), font, scale, ink, 1, cv2.LINE_AA)


def enlarge(image: np.ndarray) -> np.ndarray:
    """Return the image with its long side ``TILE`` pixels; pixels stay square and sharp."""
    factor = TILE / max(image.shape[:2])
    size = [max(1, round(side * factor)) for side in image.shape[1::-1]]
    interpolation = cv2.INTER_AREA if factor < 1 and image.ndim == 3 else cv2.INTER_NEAREST
    return cv2.resize(image, size, interpolation=interpolation)


def frame(image: np.ndarray, width: int) -> np.ndarray:
    return np.pad(image, ((width, width), (width, width), (0, 0)), constant_values=255)


def stack(images: list[np.ndarray], axis: int) -> np.ndarray:
    return np.concatenate(images, axis)


def read_image(path: Path, flag: int = cv2.IMREAD_COLOR) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), flag)
    if image is None:
        raise ValueError(f'{path} is not a readable image; make the data set again (--overwrite)')
    return image
