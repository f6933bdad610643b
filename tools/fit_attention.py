"""Fits KArAt to a softmax model: tools/fit_attention.py CONFIG CHECKPOINT --out fitted.pth

CONFIG has attention of type KArAt, CHECKPOINT the weights of the same model with softmax in its
place. Each operator is fitted to what the softmax model attends to on training images, by least
squares, and told how far its output is from softmax's on images that were not fitted. --out is a
checkpoint of the whole model, for load_from=... of CONFIG.
"""

import argparse
import json
from pathlib import Path

import torch
from mmengine.registry import MODELS, DefaultScope
from tqdm import tqdm

from kat_mm.command_line import check_file, choose_device, positive, run_reporting_errors
from kat_mm.errors import ConfigError, DataError
from kat_mm.fitting.attention import check_models, fit_attention, softmax_twin
from kat_mm.fitting.attention_report import as_numbers, error_table, plot_errors
from kat_mm.openmmlab import config_checks, configs
from kat_mm.openmmlab.batches.images import training_images
from kat_mm.openmmlab.checkpoint_checks import check_all_loaded
from kat_mm.weights.layout import weights_of
from kat_mm.weights.reading import read_checkpoint
from kat_mm.weights.writing import check_name, write_weights


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file, or the name of one')
    parser.add_argument('checkpoint', help='weights of the whole model with softmax attention')
    parser.add_argument('--out', type=Path, required=True, help='.pth or .safetensors to write')
    configs.add_settings(parser)
    counts = (
        ('batches', 64, 'that are fitted'),
        ('held-out', 16, 'by which the ridge is chosen'),
        ('test', 16, 'of which errors are told'),
    )
    for name, default, text in counts:
        parser.add_argument(
            f'--{name}', type=positive, default=default, metavar='N', help=f'batches {text}'
        )
    parser.add_argument('--batch-size', type=positive, default=8, metavar='N')
    parser.add_argument(
        '--size', type=positive, nargs=2, metavar=('H', 'W'), help='resize images to these pixels'
    )
    parser.add_argument(
        '--random', action='store_true', help='random images of N(0, 1) in place of the data'
    )
    parser.add_argument('--json', type=Path, help='file for all errors')
    parser.add_argument('--plot', type=Path, help='PNG file for the errors')
    parser.add_argument('--device', help='cuda or cpu')
    return parser.parse_args()


class Batches:
    """Batches of images, with a progress bar each time that they are gone through."""

    def __init__(self, name: str, images: list[torch.Tensor]):
        self.name, self.images = name, images

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self):
        with tqdm(self.images, self.name, leave=False) as bar:
            yield from bar


def load(args: argparse.Namespace, config) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Returns the model of the config and its softmax twin, which has the checkpoint's weights."""
    with DefaultScope.overwrite_default_scope(config.get('default_scope')):
        model = MODELS.build(config.model)
    twin = softmax_twin(model)
    check_models(model, twin)
    config_checks.check_checkpoint(args.checkpoint)
    check_all_loaded(twin, args.checkpoint)
    weights = weights_of(read_checkpoint(args.checkpoint), f'checkpoint {args.checkpoint}')
    if unknown := sorted(set(weights) - set(twin.state_dict())):
        raise DataError(
            f'checkpoint {args.checkpoint} has {unknown[0]}, which the model of {args.config} with '
            'softmax attention lacks: give a checkpoint of that model'
        )
    model.load_state_dict(twin.state_dict(), strict=False)
    return model.eval(), twin.eval()


def check_outputs(args: argparse.Namespace) -> None:
    """Makes the folders of what is written, before work starts."""
    check_name(args.out)
    for option, path, suffix in (
        *(('--out', args.out, ''), ('--json', args.json, ''), ('--plot', args.plot, '.png')),
    ):
        if path:
            check_file(option, path, suffix)


def main():
    args = parse_args()
    check_outputs(args)
    device = choose_device(args.device)
    config = configs.read_config(args.config, args.cfg_options)
    if 'backbone' not in (config.get('model') or {}):
        raise ConfigError(f'{args.config}: has no model.backbone, whose attention is fitted')
    model, twin = load(args, config)
    parts = args.batches, args.held_out, args.test
    if args.random:
        backbone = model.backbone
        stride = backbone.patch_embed.patch_size
        size = args.size or [side * stride for side in backbone.grid]
        generator = torch.Generator().manual_seed(0)
        shape = args.batch_size, backbone.patch_embed.proj.in_channels, *size
        images = [torch.randn(shape, generator=generator) for _ in range(sum(parts))]
    else:
        config_checks.check_data(config, 'train')
        read = training_images(config, model, sum(parts), args.batch_size, args.size)
        images = list(tqdm(read, 'images', sum(parts), leave=False))
    images = [x.to(device) for x in images]
    names, first, split = ('fitted', 'held out', 'test'), 0, []
    for name, count in zip(names, parts, strict=True):
        split.append(Batches(name, images[first : first + count]))
        first += count
    fits = fit_attention(model.backbone.to(device), twin.backbone.to(device), *split)
    write_weights(model.state_dict(), args.out)
    print(error_table(fits))
    if args.json:
        args.json.write_text(json.dumps(as_numbers(fits), indent=1))
        print(args.json)
    if args.plot:
        plot_errors(fits, args.plot)
        print(args.plot)
    print(args.out)


if __name__ == '__main__':
    run_reporting_errors(main)
