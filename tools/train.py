"""Trains a detector or a segmentor: tools/train.py configs/kat_maskrcnn_coco.py"""

from kat_mm.command_line import run_reporting_errors
from kat_mm.errors import ConfigError
from kat_mm.openmmlab import config_checks, configs
from kat_mm.openmmlab.checkpoint_checks import warn_of_random_parts
from kat_mm.openmmlab.model_checks import check_classes, check_model
from kat_mm.openmmlab.resume import ResumeCheckHook, choose_weights
from kat_mm.openmmlab.runs import build_runner, check_optimizer, config_mistakes


def parse_args():
    parser = configs.parser('Train a detector or a segmentor.')
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


@config_mistakes()
def main():
    args = parse_args()
    config = configs.load_config(args)
    if args.amp:
        config.optim_wrapper.type = 'AmpOptimWrapper'
        config.optim_wrapper.dtype = 'float16'
        config.optim_wrapper.loss_scale = 'dynamic'
    configs.use_full_precision_on_cpu(config)
    if args.auto_scale_lr:
        if 'base_batch_size' not in (config.get('auto_scale_lr') or {}):
            raise ConfigError(
                f'--auto-scale-lr: {args.config} has no auto_scale_lr.base_batch_size; add '
                'auto_scale_lr=dict(base_batch_size=...) with the batch size of its learning rate'
            )
        config.auto_scale_lr.enable = True
    choose_weights(config, args.resume)
    config_checks.check_data(config, 'train', 'val')
    config_checks.check_pretrained(config)

    check_optimizer(config)
    runner = build_runner(config)
    check_model(runner.model)
    check_classes(runner.model, config_checks.classes_of(config, 'train'))
    if not config.resume:
        warn_of_random_parts(runner.model, config.get('load_from'))
    runner.register_hook(ResumeCheckHook())
    runner.train()


if __name__ == '__main__':
    run_reporting_errors(main)
