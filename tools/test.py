"""Evaluates a detector or a segmentor: tools/test.py CONFIG CHECKPOINT"""

from copy import deepcopy

from mmengine.config import Config, ConfigDict
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from kat_mm.command_line import run_reporting_errors
from kat_mm.errors import ConfigError
from kat_mm.openmmlab import config_checks, configs
from kat_mm.openmmlab.checkpoint_checks import check_all_loaded
from kat_mm.openmmlab.model_checks import check_classes


def parse_args():
    parser = configs.parser('Evaluate a detector or a segmentor.')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out',
        help='detection: a .pkl file for the predictions; segmentation: a folder for a label map '
        "per image, an 8-bit PNG of its name and size (of ADE20K in the evaluation server's "
        'format, with values 1 to 150)',
    )
    parser.add_argument(
        '--show-dir',
        help='where pictures of the predictions beside the ground truth go; for detection, a '
        'relative path counts from the log folder in the work dir',
    )
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds per shown picture')
    parser.add_argument('--tta', action='store_true', help='test time augmentation')
    return parser.parse_args()


def draw_predictions(config: Config, args) -> None:
    hook = config.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ConfigError(f'--show and --show-dir: {args.config} has no visualization hook')
    hook.update(draw=True, show=args.show, wait_time=args.wait_time)
    if configs.is_segmentation(config):
        hook.interval = 1  # every picture, as in detection
    if args.show_dir and configs.is_segmentation(config):
        config.visualizer.save_dir = args.show_dir
    elif args.show_dir:
        hook.test_out_dir = args.show_dir


def augment(config: Config) -> None:
    """Wraps the model in test time augmentation: the config's own, or flips for detection."""
    dataset = config.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if not (config.get('tta_model') and config.get('tta_pipeline')):
        if configs.is_segmentation(config):
            raise ConfigError('--tta: the config has no tta_model and tta_pipeline')
        config.tta_model = dict(
            type='InstanceTTAModel',
            tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
        )
        pack = deepcopy(dataset.pipeline[-1])
        pack.meta_keys = (
            *('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
            *('flip', 'flip_direction'),
        )
        flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
        config.tta_pipeline = [
            *deepcopy(dataset.pipeline[:-1]),
            dict(type='TestTimeAug', transforms=[flips, [pack]]),
        ]
    dataset.pipeline = config.tta_pipeline
    config.model = ConfigDict(**config.tta_model, module=config.model)


def main():
    args = parse_args()
    config = configs.load_config(args)
    if args.tta:
        augment(config)
    config_checks.check_data(config, 'test')
    config_checks.check_checkpoint(args.checkpoint)
    config.load_from, config.resume = args.checkpoint, False
    if args.show or args.show_dir:
        draw_predictions(config, args)
    if args.out and configs.is_segmentation(config):
        next(configs.nested(config.test_evaluator, 'type')).output_dir = args.out
    elif args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise ConfigError(f'--out {args.out}: detections are saved to a file that ends in .pkl')

    runner = RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)
    if args.out and not configs.is_segmentation(config):
        from mmdet.evaluation import DumpDetResults

        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    check_classes(runner.model, config_checks.classes_of(config, 'test'))
    check_all_loaded(runner.model, args.checkpoint)
    runner.test()


if __name__ == '__main__':
    run_reporting_errors(main)
