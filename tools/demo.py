"""Trains a small KAT Mask R-CNN on the embedded digit scenes and shows what it has learned."""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from kat_mm.datasets.comparison import draw_comparisons
from kat_mm.engine import cli, latest_checkpoint
from kat_mm.engine.curves import plot_training, read_scalars

TOOLS = Path(__file__).resolve().parent
CONFIG = TOOLS.parent / 'configs' / 'kat_maskrcnn_digits.py'


def run(tool: str, *arguments) -> None:
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    if status := subprocess.run(command).returncode:
        sys.exit(status)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--config', type=Path, default=CONFIG, help='a config on digit scenes')
    parser.add_argument('--data', type=Path, default=Path('data/digit_scenes'), help='its data')
    parser.add_argument('--pictures', type=int, default=12, help='validation scenes to draw')
    args = parser.parse_args()
    work_dir = Path('work_dirs') / args.config.stem
    predictions = work_dir / 'predictions'

    start = time.time()
    run('make_digit_scenes.py', args.data)
    options = [f'val_evaluator.outfile_prefix={predictions}/results']
    run('train.py', args.config, '--work-dir', work_dir, '--cfg-options', *options)
    seconds = time.time() - start

    curves = work_dir / 'curves.png'
    plot_training(work_dir, curves)
    draw_comparisons(
        args.data, 'val', f'{predictions}/results.segm.json', predictions, args.pictures
    )
    scores = read_scalars(work_dir)[1][-1]
    table = Table(show_header=False, title='KAT Mask R-CNN on scenes of unseen digits')
    for key, name in (('bbox', 'box'), ('segm', 'mask')):
        table.add_row(f'{name} AP', f'{scores[f"coco/{key}_mAP"]:.3f}')
        table.add_row(f'{name} AP50', f'{scores[f"coco/{key}_mAP_50"]:.3f}')
    table.add_row('seconds', f'{seconds:.0f}')
    table.add_row('checkpoint', latest_checkpoint(work_dir))
    table.add_row('curves', str(curves))
    table.add_row('predictions', f'{predictions}/*.png')
    table.add_row('next, on COCO', 'put COCO 2017 in data/coco, then')
    table.add_row('', f'{sys.executable} tools/train.py configs/kat_maskrcnn_coco.py')
    Console().print(table)


if __name__ == '__main__':
    cli.run_reporting_errors(main)
