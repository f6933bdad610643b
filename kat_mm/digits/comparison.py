"""Pictures of predictions beside what is annotated."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from .contact_sheet import (
    by_image,
    draw_annotations,
    draw_labels,
    enlarge,
    frame,
    read_image,
    stack,
)
from .writer import write_png


def draw_comparisons(
    root: str | Path,
    split: str,
    results: str | Path,
    out_dir: str | Path,
    count: int = 12,
    min_score: float = 0.5,
) -> list[Path]:
    """Draws scenes of a data set as image, ground truth and predictions, side by side.

    Args:
        root: data set as `write_dataset` lays it out.
        split: 'train' or 'val'.
        results: of detection, the COCO results file of the split, with masks (mmdet's CocoMetric
            writes it as *.segm.json where its outfile_prefix is set); of segmentation, the folder
            of label maps (the output_dir of mmseg's IoUMetric).
        out_dir: where the PNG files go, one a scene, named as the images.
        count: number of scenes, the first of the split.
        min_score: detections below it are left out.

    Returns:
        The paths of the pictures.

    Raises:
        FileNotFoundError: a file of the data set or the results are missing.
    """
    root, out_dir = Path(root), Path(out_dir)
    coco = json.loads((root / 'annotations' / f'{split}.json').read_text())
    if Path(results).is_dir():
        draw_truth, draw_predicted = map(_label_drawer, (root / 'labels' / split, Path(results)))
    else:
        predictions = [p for p in json.loads(Path(results).read_text()) if p['score'] >= min_score]
        draw_truth, draw_predicted = map(_instance_drawer, (coco['annotations'], predictions))
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    for entry in coco['images'][:count]:
        image = read_image(root / 'images' / split / entry['file_name'])
        tiles = {
            'image': enlarge(image),
            'ground truth': draw_truth(image, entry),
            'prediction': draw_predicted(image, entry),
        }
        titled = [_with_title(frame(tile, 4), title) for title, tile in tiles.items()]
        paths.append(out_dir / f'{Path(entry["file_name"]).stem}.png')
        write_png(paths[-1], stack(titled, axis=1))
    return paths


def _instance_drawer(annotations: list[dict]) -> Callable[[np.ndarray, dict], np.ndarray]:
    found = by_image(annotations)
    return lambda image, entry: draw_annotations(image, found.get(entry['id'], []))


def _label_drawer(folder: Path) -> Callable[[np.ndarray, dict], np.ndarray]:
    return lambda image, entry: draw_labels(
        read_image(folder / entry['file_name'], cv2.IMREAD_UNCHANGED)
    )


def _with_title(image: np.ndarray, title: str) -> np.ndarray:
    strip = np.full((22, image.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, title, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return stack([strip, image], axis=0)
