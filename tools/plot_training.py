"""Draws the loss and validation curves of a training run: tools/plot_training.py WORK_DIR"""

import argparse
from pathlib import Path

from kat_mm.command_line import run_reporting_errors
from kat_mm.openmmlab.curves import plot_training


def main():
    parser = argparse.ArgumentParser(description='Draw the curves of a training run.')
    parser.add_argument('work_dir', type=Path, help='work dir of the run')
    parser.add_argument('-o', '--out', help='PNG file, by default curves.png in the work dir')
    args = parser.parse_args()
    out = args.out or args.work_dir / 'curves.png'
    plot_training(args.work_dir, out)
    print(out)


if __name__ == '__main__':
    run_reporting_errors(main)
