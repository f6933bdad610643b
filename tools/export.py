"""Exports the backbone of a config: tools/export.py configs/kat_maskrcnn_coco.py kat.onnx

The name tells the format: .pt2 is torch.export's, .onnx ONNX of standard operators, and .so.pt2 a
package that AOTInductor compiled for this machine's GPU or CPU. Both .pt2 call the compiled op, so
import kat_mm before you load them. What is exported then runs on random images of --size, and the
largest difference from the model is printed.
"""

import argparse
from pathlib import Path

import torch
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint

from kat_mm.command_line import choose_device, positive, run_reporting_errors
from kat_mm.errors import ConfigError
from kat_mm.models.export import export_backbone, run, save
from kat_mm.openmmlab import config_checks, configs

SUFFIXES = {'.so.pt2': 'aoti', '.pt2': 'pt2', '.onnx': 'onnx'}


def parse_args() -> argparse.Namespace:
    parser = configs.parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument('out', type=Path, help='file to write: .pt2, .onnx or .so.pt2')
    parser.add_argument('--checkpoint', help='weights of the whole model, from tools/train.py')
    parser.add_argument(
        '--size', type=positive, nargs=2, default=(224, 224), metavar=('H', 'W'), help='pixels'
    )
    parser.add_argument('--batch', type=positive, default=1, help='number of images')
    parser.add_argument(
        '--dynamic',
        action='store_true',
        help='let the number of images and their size vary',
    )
    parser.add_argument('--device', help='cuda or cpu')
    return parser.parse_args()


def build(args: argparse.Namespace) -> torch.nn.Module:
    """Returns the backbone of the config, with the weights of the checkpoint if there is one."""
    config = configs.load_config(args)
    part = config.model if args.checkpoint else config.model.get('backbone')
    if part is None:
        raise ConfigError(f'{args.config}: has no model.backbone, which is what is exported')
    with DefaultScope.overwrite_default_scope(config.get('default_scope')):
        model = MODELS.build(part)
    if not args.checkpoint:
        return model
    config_checks.check_checkpoint(args.checkpoint)
    load_checkpoint(model, args.checkpoint, map_location='cpu', strict=True)
    return model.backbone


def main():
    args = parse_args()
    kind = next((k for suffix, k in SUFFIXES.items() if args.out.name.endswith(suffix)), None)
    if kind is None:
        raise ConfigError(f'{args.out}: the name must end with one of {", ".join(SUFFIXES)}')
    device = torch.device('cpu') if kind == 'onnx' else choose_device(args.device)
    model = build(args).to(device).eval()
    torch.manual_seed(0)
    images = torch.randn(args.batch, 3, *args.size, device=device)
    save(export_backbone(model, images, args.dynamic, args.dynamic), args.out, kind)
    print(args.out)
    with torch.no_grad():
        expected, results = model(images), run(args.out, kind, images)
    if results is None:
        print('not checked, as onnxruntime is not installed: pip install onnxruntime')
        return
    pairs = zip(results, expected, strict=True)
    print(f'largest difference: {max((a - b).abs().max().item() for a, b in pairs):.2g}')


if __name__ == '__main__':
    run_reporting_errors(main)
