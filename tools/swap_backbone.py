"""Puts KAT into a config: tools/swap_backbone.py mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco"""

import argparse
import shlex
import sys
from pathlib import Path

from kat_mm.command_line import run_reporting_errors
from kat_mm.models import ARCHS
from kat_mm.openmmlab import config_checks
from kat_mm.openmmlab.swap import read_config, swap_backbone, write_config
from kat_mm.openmmlab.swap.source import source


def parse_args():
    parser = argparse.ArgumentParser(
        description='Write a config of mmdet or mmseg anew, with KAT as its backbone.'
    )
    parser.add_argument('config', help='a path, or mmdet::detr/detr_r50_8xb2-150e_coco')
    parser.add_argument('--arch', choices=list(ARCHS), default='small', help='size of KAT')
    parser.add_argument('-o', '--out', type=Path, help='the new config, by default in this folder')
    parser.add_argument('--checkpoint', help="KAT's weights; without them it trains from scratch")
    parser.add_argument('--layer-decay', type=float, help='learning rate decay by block, e.g. 0.8')
    return parser.parse_args()


def short(value, length: int = 60) -> str:
    text = value if isinstance(value, str) else source(value)
    return text if len(text) <= length else f'{text[: length - 4]} ...'


def main():
    args = parse_args()
    config, base = read_config(args.config)
    if args.checkpoint:
        config_checks.check_checkpoint(args.checkpoint)
    changes = swap_backbone(config, args.arch, args.checkpoint, args.layer_decay)
    out = args.out or Path(f'kat-{args.arch}_{Path(base).stem}.py')
    write_config(config, base, out, f'# python {shlex.join(sys.argv)}\n')
    reason = None
    for change in changes:
        print(f'{change.key}: {short(change.old)} -> {short(change.new)}')
        if change.reason != reason:
            print(f'    {change.reason}')
        reason = change.reason
    if not args.checkpoint:
        print('model.backbone starts from random weights: --checkpoint names those of KAT')
    print(f'wrote {out}; train it with: python tools/train.py {out}')


if __name__ == '__main__':
    run_reporting_errors(main)
