"""Evaluates a detector or a segmentor: tools/test.py CONFIG CHECKPOINT"""

from logging import WARNING
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log

from kat_mm.command_line import run_reporting_errors
from kat_mm.errors import ConfigError
from kat_mm.openmmlab import config_checks, configs
from kat_mm.openmmlab.checkpoint_checks import check_all_loaded
from kat_mm.openmmlab.model_checks import check_classes
from kat_mm.openmmlab.runs import build_runner, config_mistakes
from kat_mm.openmmlab.tta import augment_tests


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


def draw_predictions(config: Config, args, is_segmentation: bool) -> None:
    hook = config.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ConfigError(f'--show and --show-dir: {args.config} has no visualization hook')
    if args.launcher != 'none':
        print_log('--show and --show-dir: only the images of the first process', level=WARNING)
    hook.update(draw=True, show=args.show, wait_time=args.wait_time)
    if is_segmentation:
        hook.interval = 1  # every picture, as in detection
    if args.show_dir and is_segmentation:
        config.visualizer.save_dir = args.show_dir
    elif args.show_dir:
        hook.test_out_dir = args.show_dir


def set_output(config: Config, out: str, is_segmentation: bool) -> None:
    """Checks where predictions go, and has the label maps of a segmentor written there."""
    if is_segmentation:
        if Path(out).is_file():
            raise ConfigError(f'--out {out}: is a file; label maps need a folder')
        # Now, as the processes after the first do not wait for it to make the folder.
        Path(out).mkdir(parents=True, exist_ok=True)
        next(configs.nested(config.test_evaluator, 'type')).output_dir = out
    elif not out.endswith(('.pkl', '.pickle')):
        raise ConfigError(f'--out {out}: detections are saved to a file that ends in .pkl')


@config_mistakes()
def main():
    args = parse_args()
    config = configs.load_config(args)
    is_segmentation = configs.is_segmentation(config)  # also where the model is wrapped below
    if args.tta:
        augment_tests(config)
    config_checks.check_data(config, 'test')
    config_checks.check_checkpoint(args.checkpoint)
    config.load_from, config.resume = args.checkpoint, False
    if args.show or args.show_dir:
        draw_predictions(config, args, is_segmentation)
    if args.out:
        set_output(config, args.out, is_segmentation)

    runner = build_runner(config)
    if args.out and not is_segmentation:
        from mmdet.evaluation import DumpDetResults

        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    check_classes(runner.model, config_checks.classes_of(config, 'test'))
    check_all_loaded(runner.model, args.checkpoint)
    runner.test()


if __name__ == '__main__':
    run_reporting_errors(main)
