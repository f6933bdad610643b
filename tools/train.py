"""Trains a detector or a segmentor: tools/train.py configs/kat_maskrcnn_coco.py"""

from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

import kat_mm  # noqa: F401
from kat_mm.engine import cli, latest_checkpoint
from kat_mm.errors import ConfigError


def parse_args():
    parser = cli.parser('Train a detector or a segmentor.')
    parser.add_argument('--amp', action='store_true', help='train in fp16 mixed precision')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='auto|CHECKPOINT',
        help='go on from a checkpoint, by default the last one in the work dir',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the total batch size',
    )
    return parser.parse_args()


def main():
    args = parse_args()
    config = cli.load_config(args)
    if args.amp:
        config.optim_wrapper.type = 'AmpOptimWrapper'
        config.optim_wrapper.dtype = 'float16'
        config.optim_wrapper.loss_scale = 'dynamic'
        cli.use_full_precision_on_cpu(config)
    if args.auto_scale_lr:
        if 'base_batch_size' not in config.get('auto_scale_lr', {}):
            raise ConfigError(
                f'--auto-scale-lr: {args.config} has no auto_scale_lr.base_batch_size; add '
                'auto_scale_lr=dict(base_batch_size=...) with the batch size of its learning rate'
            )
        config.auto_scale_lr.enable = True
    if args.resume:
        path = latest_checkpoint(config.work_dir) if args.resume == 'auto' else args.resume
        if path is None:
            print_log(f'nothing to resume in {config.work_dir}: training from the start', 'current')
        else:
            cli.check_checkpoint(path)
        config.load_from, config.resume = path, path is not None
    elif config.get('load_from'):
        cli.check_checkpoint(config.load_from)
    cli.check_data(config, 'train', 'val')
    if not config.get('resume'):
        cli.check_pretrained(config)

    runner = RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)
    runner.train()


if __name__ == '__main__':
    cli.run_reporting_errors(main)
