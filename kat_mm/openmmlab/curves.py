"""The course of a training run as numbers and as a picture."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import DataError

METRICS = {
    'coco/bbox_mAP': 'box AP',
    'coco/bbox_mAP_50': 'box AP50',
    'coco/segm_mAP': 'mask AP',
    'coco/segm_mAP_50': 'mask AP50',
    'mIoU': 'mIoU (%)',
}


def read_scalars(work_dir: str | Path) -> tuple[list[dict], list[dict]]:
    """Returns what the runs of a work dir logged: (training records, validation records).

    Records are dicts as mmengine writes them to scalars.json, in the order of their steps. A run
    replaces what runs before it logged from its first step on.

    Raises:
        DataError: if nothing was logged there.
    """
    training, validation = {}, {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        run = list(_parse(path))
        for records, is_training in ((training, True), (validation, False)):
            new = {r['step']: r for r in run if ('loss' in r) == is_training}
            for step in [step for step in records if new and step >= min(new)]:
                del records[step]
            records.update(new)
    if not training:
        raise DataError(f'{work_dir} has no training log (*/vis_data/scalars.json)')
    return [training[k] for k in sorted(training)], [validation[k] for k in sorted(validation)]


def _parse(path: Path) -> Iterator[dict]:
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # the line that a killed run was writing
            continue


def plot_training(work_dir: str | Path, png: str | Path) -> None:
    """Draws loss against iteration and the validation metrics to a PNG file.

    Raises:
        DataError: if nothing was logged in `work_dir`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    training, validation = read_scalars(work_dir)
    figure = Figure(figsize=(10, 4), layout='constrained')
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    names = [name for name in training[-1] if 'loss' in name]
    for name in sorted(names, key=lambda name: name != 'loss'):
        points = [(r['step'], r[name]) for r in training if name in r]
        width, alpha = (2, 1) if name == 'loss' else (1, 0.7)
        left.plot(*np.transpose(points), label=name, linewidth=width, alpha=alpha)
    left.set(xlabel='iteration', title='Training loss', yscale='log')
    left.legend(fontsize=8)
    for key, label in METRICS.items():
        points = [(r['step'], r[key]) for r in validation if key in r]
        if points:
            right.plot(*np.transpose(points), marker='o', markersize=4, label=label)
    by_epoch = 'epoch' in training[-1]
    right.set(xlabel='epoch' if by_epoch else 'iteration', title='Validation')
    right.xaxis.get_major_locator().set_params(integer=True)
    if any(key.startswith('coco') for record in validation for key in record):
        right.set_ylim(0, 1)
    if right.lines:
        right.legend(fontsize=8, loc='lower right')
    for axes in (left, right):
        axes.grid(alpha=0.3)
    Path(png).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png, dpi=120)
