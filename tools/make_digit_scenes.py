"""Make the embedded data set: scenes of handwritten digits with boxes, masks and label maps."""

import argparse
import sys
from pathlib import Path

import cv2
from tqdm import tqdm

from kat_mm.digits.contact_sheet import contact_sheet
from kat_mm.digits.scenes import SceneSpec
from kat_mm.digits.writer import write_dataset, write_png


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        'out', nargs='?', type=Path, default=Path('data/digit_scenes'), metavar='OUT', help='folder'
    )
    parser.add_argument('--train', type=int, default=2000, metavar='N', help='training scenes')
    parser.add_argument('--val', type=int, default=200, metavar='N', help='validation scenes')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=SceneSpec.size,
        metavar=('H', 'W'),
        help='height and width of the images in pixels; digits scale with the shorter one',
    )
    parser.add_argument('--seed', type=int, default=SceneSpec.seed, metavar='N', help='0 or more')
    parser.add_argument(
        '--min-digits',
        type=int,
        default=SceneSpec.min_digits,
        metavar='N',
        help='fewest in a scene',
    )
    parser.add_argument(
        '--max-digits', type=int, default=SceneSpec.max_digits, metavar='N', help='most in a scene'
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace the data set that is in OUT'
    )
    parser.add_argument(
        '--preview',
        type=Path,
        metavar='FILE.png',
        help='write a picture of some scenes with their annotations',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.preview and args.preview.suffix.lower() != '.png':
        raise ValueError(f'--preview {args.preview}: the name must end in .png')
    cv2.setNumThreads(1)  # more only wait for each other on images this small
    spec = SceneSpec(tuple(args.size), args.seed, args.min_digits, args.max_digits)

    def progress(indices, split):
        return tqdm(indices, f'{split} scenes', unit='scene')

    made = write_dataset(args.out, spec, args.train, args.val, args.overwrite, progress)
    print(f'{args.out}: {args.train} train and {args.val} val scenes', end=' ')
    print('written' if made else 'are already there')
    if args.preview:
        args.preview.parent.mkdir(parents=True, exist_ok=True)
        write_png(args.preview, contact_sheet(args.out, 'train' if args.train else 'val'))
        print(f'{args.preview}: preview written')


if __name__ == '__main__':
    try:
        main()
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        sys.exit(f'error: {error}')
