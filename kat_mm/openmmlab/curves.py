"""The course of a training run as a picture."""

from pathlib import Path

import numpy as np

from ..training_log import read_scalars

METRICS = {
    'coco/bbox_mAP': 'box AP',
    'coco/bbox_mAP_50': 'box AP50',
    'coco/segm_mAP': 'mask AP',
    'coco/segm_mAP_50': 'mask AP50',
    'mIoU': 'mIoU (%)',
}


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
