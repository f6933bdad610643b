"""Trains a small KAT on the embedded digit scenes and shows what it has learned."""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from kat_mm.command_line import run_reporting_errors
from kat_mm.digits.comparison import draw_comparisons
from kat_mm.openmmlab import latest_checkpoint
from kat_mm.openmmlab.configs import read_config
from kat_mm.openmmlab.curves import plot_training, read_scalars

TOOLS = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Task:
    """What differs between detection and segmentation."""

    model: str
    saving: str  # setting that has validation save its predictions
    results: str  # where they then are
    scores: dict[str, str]  # name in the log: name
    perfect: float  # the best score there is
    next_data: str
    next_config: str


TASKS = {
    'mmdet': Task(
        model='Mask R-CNN',
        saving='val_evaluator.outfile_prefix={}/results',
        results='results.segm.json',
        scores={
            'coco/bbox_mAP': 'box AP',
            'coco/bbox_mAP_50': 'box AP50',
            'coco/segm_mAP': 'mask AP',
            'coco/segm_mAP_50': 'mask AP50',
        },
        perfect=1,
        next_data='COCO 2017 in data/coco',
        next_config='configs/kat_maskrcnn_coco.py',
    ),
    'mmseg': Task(
        model='UPerNet',
        saving='val_evaluator.output_dir={}/labels',
        results='labels',
        scores={'mIoU': 'mIoU', 'aAcc': 'pixel accuracy'},
        perfect=100,
        next_data='ADE20K in data/ade/ADEChallengeData2016',
        next_config='configs/kat_upernet_ade20k.py',
    ),
}


def run(tool: str, *arguments) -> None:
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    if status := subprocess.run(command).returncode:
        sys.exit(status)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--config', default='kat_mm::kat_maskrcnn_digits.py', help='a config on digit scenes'
    )
    parser.add_argument('--data', type=Path, default=Path('data/digit_scenes'), help='its data')
    parser.add_argument('--pictures', type=int, default=12, help='validation scenes to draw')
    args = parser.parse_args()
    config = read_config(args.config)
    task = TASKS[config.default_scope]
    work_dir = Path('work_dirs') / Path(config.filename).stem
    predictions = work_dir / 'predictions'

    start = time.time()
    run('make_digit_scenes.py', args.data)
    options = [task.saving.format(predictions)]
    run('train.py', args.config, '--work-dir', work_dir, '--cfg-options', *options)
    seconds = time.time() - start

    curves = work_dir / 'curves.png'
    plot_training(work_dir, curves)
    draw_comparisons(args.data, 'val', predictions / task.results, predictions, args.pictures)
    scores = read_scalars(work_dir)[1][-1]
    table = Table(show_header=False, title=f'KAT {task.model} on scenes of unseen digits')
    for key, name in task.scores.items():
        table.add_row(name, f'{scores[key] / task.perfect:.3f}')
    table.add_row('seconds', f'{seconds:.0f}')
    table.add_row('checkpoint', latest_checkpoint(work_dir))
    table.add_row('curves', str(curves))
    table.add_row('predictions', f'{predictions}/*.png')
    table.add_row('next', f'put {task.next_data}, then')
    table.add_row('', f'{sys.executable} tools/train.py {task.next_config}')
    Console().print(table)


if __name__ == '__main__':
    run_reporting_errors(main)
