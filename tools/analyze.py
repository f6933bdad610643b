"""Shows what a trained model has learned: tools/analyze.py CONFIG CHECKPOINT

It writes pictures and one file of all numbers, analysis.json, to a folder:

attention   what some tokens of an image attend to, by block and head
spectra     singular values of the attention matrices before and after the activation, and their
            effective rank, beside what softmax would make of the same scores
units       learned functions of Kolmogorov-Arnold attention, against their start
histograms  weights and coefficients by kind
landscape   the training loss on the two main directions of the training path, from all checkpoints
            of the folder (epoch_*.pth, iter_*.pth) up to this one
"""

import argparse
import json
import math
import warnings
from pathlib import Path

from rich.console import Console

from kat_mm.benchmarking.timing import progress
from kat_mm.command_line import check_folder, choose_device, positive, run_reporting_errors
from kat_mm.errors import ConfigError, UserError
from kat_mm.openmmlab import config_checks, configs
from kat_mm.openmmlab.analysis.analyses import ANALYSES, DATA
from kat_mm.openmmlab.analysis.models import build_trained, find_checkpoint
from kat_mm.openmmlab.analysis.subject import Subject
from kat_mm.openmmlab.runs import config_mistakes


def fractions(text: str) -> tuple[float, float]:
    """Parses a place in an image: Y,X."""
    try:
        y, x = map(float, text.split(','))
    except ValueError:
        y = x = -1.0
    if not (0 <= y < 1 and 0 <= x < 1):
        raise argparse.ArgumentTypeError(f'must be Y,X of numbers from 0 to below 1, got {text!r}')
    return y, x


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file, or the name of one')
    parser.add_argument(
        'checkpoint', help='checkpoint file, or the work dir of a run: its last one'
    )
    parser.add_argument(
        '-o', '--out', type=Path, help='folder, by default analysis beside the checkpoint'
    )
    parser.add_argument(
        '--only', nargs='+', choices=ANALYSES, metavar='NAME', help=f'of: {", ".join(ANALYSES)}'
    )
    parser.add_argument(
        '--image', default='0', help='image of the test data by its number, or an image file'
    )
    parser.add_argument(
        '--images',
        type=positive,
        default=4,
        dest='num_images',
        help='from that on, for the spectra',
    )
    parser.add_argument('--blocks', type=int, nargs='+', help='to draw, all by default')
    parser.add_argument('--heads', type=int, nargs='+', help='to draw, all by default')
    parser.add_argument(
        '--queries',
        type=fractions,
        nargs='+',
        default=Subject.queries,
        metavar='Y,X',
        help='places of the tokens whose attention is drawn, as fractions of the image',
    )
    parser.add_argument(
        '--start', help='checkpoint of the start; by default drawn again from the seed of the run'
    )
    parser.add_argument('--batches', type=positive, default=4, help='that losses are computed on')
    parser.add_argument(
        '--points', type=positive, default=21, help='of the landscape along each side'
    )
    parser.add_argument('--device', help='cuda or cpu, by default a GPU if there is any')
    configs.add_settings(parser)
    return parser.parse_args()


def without_nan(node):
    """Returns what json may hold: None in place of NaN and infinities."""
    if isinstance(node, dict):
        return {key: without_nan(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [without_nan(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


@config_mistakes()
def main():
    args = parse_args()
    if args.points < 2:
        raise ConfigError(f'--points {args.points}: a landscape has 2 along each side, or more')
    warnings.filterwarnings('ignore', module='mmseg')  # of arguments that a config may keep
    console = Console(stderr=True)
    device = choose_device(args.device)
    config = configs.read_config(args.config, args.cfg_options)
    checkpoint = find_checkpoint(args.checkpoint)
    chosen = args.only or list(ANALYSES)
    config_checks.check_checkpoint(str(checkpoint))
    splits = {DATA[name] for name in chosen if name in DATA}
    if not args.image.isdecimal():
        splits -= {'test'}  # the image stands for it
    config_checks.check_data(config, *sorted(splits))
    out = args.out or checkpoint.parent / 'analysis'
    check_folder('--out', out)
    model = build_trained(config, checkpoint, device)
    options = ('blocks', 'heads', 'queries', 'image', 'num_images', 'batches', 'points', 'start')
    subject = Subject(
        *(config, checkpoint, model, device, out, progress),
        **{name: getattr(args, name) for name in options},
    )
    result = {'config': args.config, 'checkpoint': str(checkpoint), 'device': str(device)}
    for name in ANALYSES:
        if name not in chosen:
            continue
        try:
            result[name] = ANALYSES[name](subject)
        except UserError as error:
            if args.only:
                raise
            subject.notes[name] = f'left out: {error}'
        if name in subject.notes:
            console.print(f'{name}: {subject.notes[name]}', soft_wrap=True, highlight=False)
    result['notes'] = subject.notes
    path = out / 'analysis.json'
    path.write_text(json.dumps(without_nan(result), indent=1, allow_nan=False) + '\n')
    print(path)


if __name__ == '__main__':
    run_reporting_errors(main)
