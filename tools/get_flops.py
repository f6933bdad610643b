"""Counts parameters and FLOPs of a model: tools/get_flops.py CONFIG or tools/get_flops.py small

CONFIG is a detector or segmentor, which is counted whole as it runs on one image, from the data
preprocessor to the heads' outputs; at the size that its test pipeline resizes images to, if --size
does not say another. tiny, small and base are KAT with a classification head for 1000 classes.

A multiply-add is one FLOP, and so is each of the 2m + 2n + 3 operations that a rational activation
takes for an element, which is how the KAT paper counts. Attention is counted with both products.
The proposals of a two-stage detector are as many as it keeps, 1000 by default; masks are computed
of the first 100 by mmdet's Mask R-CNN.
"""

import argparse
import warnings
from dataclasses import dataclass

import torch
from mmengine.config import Config
from rich.console import Console
from rich.table import Table

from kat_mm.benchmarking.backbones import kat
from kat_mm.benchmarking.operations import (
    ATTENTION_PRODUCTS,
    RATIONAL_ACTIVATIONS,
    Part,
    count_parts,
)
from kat_mm.command_line import positive, run_reporting_errors
from kat_mm.errors import ConfigError, UserError
from kat_mm.models import ARCHS
from kat_mm.openmmlab import configs
from kat_mm.openmmlab.config_names import find_config
from kat_mm.openmmlab.dry_run import meta_parameters, prepare


@dataclass(frozen=True)
class Published:
    """Figures of the KAT paper (arXiv 2409.10594), and why ours differ where they do."""

    size: tuple[int, int]  # of the image, (H, W)
    millions: float  # of parameters
    giga: float  # FLOPs; of the classifiers without the attention products
    note: str = ''


NECK = (
    'FLOPs: the paper does not tell the detector; this one has the published parameters at both '
    'sizes within 0.4%. From KAT-S to KAT-B the published FLOPs grow by 346 G, ours by 383 G, of '
    "which 53 G are the neck's. With ViTDet's pyramid and heads "
    '(configs/_base_/mask_rcnn_vitdet.py) they grow by 344 G, but are 499 G and 843 G, and KAT-B '
    'has 110.8 M parameters.'
)
SQUARE, DETECTION, SEGMENTATION = (224, 224), (800, 1333), (512, 2048)
PUBLISHED = {  # by arch or config
    'tiny': Published(SQUARE, 5.7, 1.13),
    'small': Published(SQUARE, 22.1, 4.35),
    'base': Published(SQUARE, 86.6, 17.06),
    'kat_maskrcnn_coco.py': Published(DETECTION, 44.5, 424, NECK),
    'coco/kat_base_maskrcnn_coco.py': Published(DETECTION, 113.7, 770),
    'kat_upernet_ade20k.py': Published(SEGMENTATION, 57, 1219),
    'ade20k/kat_base_upernet_ade20k.py': Published(SEGMENTATION, 142, 2011),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'config',
        metavar='CONFIG',
        help=f'config file, name such as mmdet::FOLDER/NAME, or {", ".join(ARCHS)}',
    )
    parser.add_argument(
        '--size', nargs=2, type=positive, metavar=('H', 'W'), help='size of the image in pixels'
    )
    configs.add_settings(parser)
    parser.add_argument(
        '--device',
        choices=['meta', 'cpu'],
        default='meta',
        help='cpu really computes, which is slow; some models need the values',
    )
    return parser.parse_args()


def image_size(config: Config) -> tuple[int, int]:
    """Returns the (H, W) that the config's test pipeline resizes images to."""
    for step in configs.nested(config.get('test_dataloader'), 'scale'):
        scale = step['scale']
        if isinstance(scale, (list, tuple)) and all(isinstance(side, int) for side in scale):
            return scale[1], scale[0]
    raise ConfigError('the test pipeline of the config names no size; give one: --size H W')


def published(args: argparse.Namespace, size: tuple[int, int]) -> Published | None:
    """Returns the published figures of this arch or config, if it is as they have it."""
    name = args.config if args.config in ARCHS else find_config(args.config)[1]
    figures = PUBLISHED.get(name.removeprefix('kat_mm::'))
    return figures if figures and size == figures.size and not args.cfg_options else None


def table(parts: dict[tuple[str, str], Part], total: Part) -> Table:
    result = Table(show_footer=True)
    result.add_column('part', footer='sum')
    result.add_column('parameters (M)', f'{total.parameters / 1e6:.3f}', justify='right')
    result.add_column('FLOPs (G)', f'{total.operations / 1e9:.3f}', justify='right')
    result.add_column('share', justify='right')
    for names, part in parts.items():
        result.add_row(
            ': '.join(filter(None, names)) or 'whole model',
            f'{part.parameters / 1e6:.3f}',
            f'{part.operations / 1e9:.3f}',
            f'{part.operations / total.operations:.1%}',
        )
    return result


def comparison(figures: Published, parameters: int, operations: int) -> str:
    """Returns the published figures with the differences of ours."""

    def difference(ours: float, theirs: float) -> str:
        return f'{round(ours / theirs - 1, 3) + 0.0:+.1%}'  # + 0.0 leaves no -0.0%

    return (
        f'Published: {figures.millions:g} M parameters (here '
        f'{difference(parameters / 1e6, figures.millions)}), {figures.giga:g} G FLOPs (here '
        f'{difference(operations / 1e9, figures.giga)}).\n{figures.note}'
    ).strip()


def main():
    args = parse_args()
    warnings.filterwarnings('ignore', module='mmseg')  # of losses, which nothing here computes
    is_arch = args.config in ARCHS
    if is_arch:
        size = tuple(args.size or SQUARE)
        with meta_parameters():
            model = kat(args.config, size).eval()
        call = dict(images=torch.zeros(1, 3, *size, device='meta'))
    else:
        config = configs.read_config(args.config, args.cfg_options)
        if 'model' not in config:
            raise ConfigError(f'config {args.config} has no model to count')
        size = tuple(args.size or image_size(config))
        model, call = prepare(config, size, args.device)
    shape = ' x '.join(map(str, size))
    try:
        parts = count_parts(model, **call)
    except (NotImplementedError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f'{type(model).__name__} cannot run on {shape} pixels on the {args.device} device '
            f'({reason}); try another --size, or --device cpu if it needs values'
        ) from error

    total = Part(*(sum(getattr(part, key) for part in parts.values()) for key in vars(Part())))
    operations = dict.fromkeys((ATTENTION_PRODUCTS, RATIONAL_ACTIVATIONS), 0)
    for (_, name), part in parts.items():
        operations[name] = operations.get(name, 0) + part.operations
    without_products = total.operations - operations[ATTENTION_PRODUCTS]
    console = Console(width=100)
    console.print(f'{args.config}, {shape}', soft_wrap=True)
    console.print(table(parts, total))
    console.print(
        f'FLOPs: {total.operations / 1e9:.2f} G, without the attention products '
        f'{without_products / 1e9:.2f} G. A multiply-add counts as one.'
    )
    console.print(
        f'Rational activations: {operations[RATIONAL_ACTIVATIONS] / 1e9:.2f} G of these, '
        '2m + 2n + 3 operations for each element, each of which counts as one.'
    )
    if figures := published(args, size):
        counted = without_products if is_arch else total.operations
        console.print(comparison(figures, total.parameters, counted))


if __name__ == '__main__':
    run_reporting_errors(main)
