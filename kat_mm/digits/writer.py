"""Write digit scenes to disk: images, COCO annotations for detection, label maps for segmentation.

    OUT/images/{train,val}/000000.png      8-bit colour images
    OUT/annotations/{train,val}.json       boxes and masks, COCO instances format
    OUT/labels/{train,val}/000000.png      8-bit class of every pixel, 0 for background
    OUT/digit_scenes.json                  the arguments that made it

Digit d has category id and label-map value d + 1.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from .scenes import Scene, SceneSpec, render_scene
from .source_digits import CLASSES, SPLITS, load_digits

STAMP = 'digit_scenes.json'

# Raise it when the same arguments begin to give other scenes or other files.
VERSION = 1

INFO = {
    'description': 'Digit scenes: handwritten digits on cluttered backgrounds',
    'version': str(VERSION),
    'contributor': 'E. Alpaydin and C. Kaynak (digits), kat_mm (scenes)',
    'url': 'https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits',
}
LICENSES = [{'id': 1, 'name': 'that of the digits', 'url': INFO['url']}]


def write_dataset(
    out: str | Path,
    spec: SceneSpec,
    train: int = 2000,
    val: int = 200,
    overwrite: bool = False,
    progress: Callable[[Iterable[int], str], Iterable[int]] | None = None,
) -> bool:
    """Make a data set of ``train`` and ``val`` scenes in folder ``out``; return whether it had to.

    Where ``out`` already holds the data set of these arguments nothing is done and the result is
    False. The files are written next to ``out`` and moved into place when all are there, so that
    an interrupted run leaves no half data set behind, and an old one stays until the new one is
    complete. ``progress(indices, split)`` may wrap the loop over a split's scenes.

    The same arguments give the same bytes, as long as the versions of NumPy and OpenCV are the
    same.

    Raises:
        FileExistsError: ``out`` holds something else. A digit-scenes data set made with other
            arguments is replaced with ``overwrite=True``; any other folder never is.
        TypeError, ValueError: a count is not an integer, or negative, or both are 0.
        ImportError: scikit-learn, which carries the digits, is missing.
    """
    counts = dict(zip(SPLITS, (train, val), strict=True))
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)):
            raise TypeError(f'the number of {name} scenes must be an integer, not {count!r}')
        if count < 0:
            raise ValueError(f'the number of {name} scenes must be 0 or more, not {count}')
    if not any(counts.values()):
        raise ValueError('train=0 and val=0 scenes make no data set; ask for at least one scene')
    # Through JSON, so that it compares equal to what is read back.
    stamp = json.loads(
        json.dumps({'version': VERSION, 'train': int(train), 'val': int(val), **asdict(spec)})
    )

    out = Path(out).resolve()
    if _is_there(out, stamp, overwrite):
        return False
    load_digits()  # fails before anything is written
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f'.{out.name}.partial-', dir=out.parent))
    try:
        new = scratch / 'new'
        new.mkdir()  # not `scratch` itself, which only its owner may read
        for split, count in counts.items():
            indices = range(count)
            _write_split(
                new, spec, split, progress(indices, split) if progress and count else indices
            )
        (new / STAMP).write_text(json.dumps(stamp, indent=2) + '\n')
        return _move_into_place(new, out, scratch / 'old', stamp, overwrite)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def read_stamp(root: str | Path) -> dict | None:
    """Return the arguments that made the data set in ``root``, or None if it holds none."""
    try:
        stamp = json.loads((Path(root) / STAMP).read_text())
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) else None


def annotate(scene: Scene, image_id: int, first_id: int) -> list[dict]:
    """Return a scene's annotations in COCO's instances format, numbered from ``first_id``.

    Boxes are [x, y, width, height] in pixels and enclose the visible mask tightly; areas count its
    pixels. Masks are compressed RLE, because polygons cannot express the holes of 0, 6, 8 and 9.
    Beyond COCO's keys, ``source`` is the digit's index in scikit-learn's ``load_digits()``.
    """
    annotations = []
    for k, (label, source) in enumerate(zip(scene.labels, scene.sources, strict=True)):
        rle = coco_mask.encode(np.asfortranarray(scene.mask(k), np.uint8))
        annotations.append(
            {
                'id': first_id + k,
                'image_id': image_id,
                'category_id': int(label) + 1,
                'bbox': coco_mask.toBbox(rle).tolist(),
                'area': int(coco_mask.area(rle)),
                'segmentation': {'size': rle['size'], 'counts': rle['counts'].decode('ascii')},
                'iscrowd': 0,
                'source': int(source),
            }
        )
    return annotations


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an image in OpenCV's channel order as PNG.

    Raises:
        OSError: the file cannot be written; ``cv2.imwrite`` would only return False.
    """
    path.write_bytes(cv2.imencode('.png', image)[1].tobytes())


def _write_split(root: Path, spec: SceneSpec, split: str, indices: Iterable[int]) -> None:
    image_dir, label_dir = root / 'images' / split, root / 'labels' / split
    for folder in (image_dir, label_dir, root / 'annotations'):
        folder.mkdir(parents=True, exist_ok=True)
    height, width = spec.size
    images, annotations = [], []
    for index in indices:
        scene = render_scene(spec, split, index)
        name = f'{index:06d}.png'
        write_png(image_dir / name, scene.image)
        write_png(label_dir / name, scene.label_map())
        images.append(
            {'id': index, 'file_name': name, 'height': height, 'width': width, 'license': 1}
        )
        # From 1: COCOeval takes a ground truth of id 0 for "no match".
        annotations += annotate(scene, index, first_id=len(annotations) + 1)
    coco = {
        'info': INFO,
        'licenses': LICENSES,
        'images': images,
        'annotations': annotations,
        'categories': [
            {'id': label + 1, 'name': name, 'supercategory': 'digit'}
            for label, name in enumerate(CLASSES)
        ],
    }
    (root / 'annotations' / f'{split}.json').write_text(json.dumps(coco))


def _is_there(out: Path, stamp: dict, overwrite: bool) -> bool:
    """Return whether ``out`` holds the data set already; raise if it holds something to keep."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    found = read_stamp(out)
    if found is None:
        raise FileExistsError(
            f'{out} exists and is not a digit-scenes data set (no readable {STAMP} in it); '
            f'choose another folder'
        )
    if overwrite:
        return False
    if found == stamp:
        return True
    differences = ', '.join(
        f'{key} {found.get(key)} instead of {value}'
        for key, value in stamp.items()
        if found.get(key) != value
    )
    raise FileExistsError(
        f'{out} holds a data set made with other arguments ({differences}); '
        f'replace it with --overwrite (overwrite=True), or choose another folder'
    )


def _move_into_place(new: Path, out: Path, old: Path, stamp: dict, overwrite: bool) -> bool:
    """Rename ``new`` to ``out``; return False if another process made the same meanwhile."""
    if _is_there(out, stamp, overwrite):
        return False
    replaces = out.exists()
    if replaces:
        out.rename(old)
    try:
        new.rename(out)
    except OSError:
        if replaces:
            old.rename(out)
        elif _is_there(out, stamp, overwrite=False):
            return False
        raise
    return True
