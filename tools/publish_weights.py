"""Writes the backbone of a trained model: tools/publish_weights.py CONFIG CHECKPOINT OUT

OUT, .pth or .safetensors, has the backbone's weights alone, with the keys and shapes of the
published KAT checkpoints: an init_cfg takes it, as does timm. They have no pyramid, so that is left
out. A new backbone of the config then loads the file, and must have the same weights.
"""

import argparse
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint

from kat_mm.command_line import run_reporting_errors
from kat_mm.errors import ConfigError, DataError
from kat_mm.openmmlab import config_checks, configs
from kat_mm.rational import published_state_dict
from kat_mm.weights.writing import check_name, write_weights

PYRAMID = 'pyramid.'


def parse_args() -> argparse.Namespace:
    parser = configs.parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument('checkpoint', help='weights of the whole model, from tools/train.py')
    parser.add_argument('out', type=Path, help='file to write: .pth or .safetensors')
    return parser.parse_args()


def trained_backbone(config: Config, checkpoint: str) -> torch.nn.Module:
    """Returns the backbone of the model with the weights of the checkpoint.

    Raises:
        DataError: for a checkpoint that is not of the whole model.
    """
    model = MODELS.build(config.model)
    try:
        load_checkpoint(model, checkpoint, map_location='cpu', strict=True)
    except RuntimeError as error:
        lines = [line for line in map(str.strip, str(error).splitlines()) if line]
        reason = (lines[1:] or lines)[0]  # the first line says that there is one
        raise DataError(f'checkpoint {checkpoint} is not of the model: {reason[:200]}') from error
    return model.backbone


def check_loads(config: Config, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Checks that a new backbone which starts from a file gets these weights."""
    settings = {key: value for key, value in config.model.backbone.items() if key != 'pretrained'}
    settings['init_cfg'] = dict(type='Pretrained', checkpoint=str(path))
    backbone = MODELS.build(settings)
    backbone.init_weights()
    loaded = published_state_dict(backbone)
    if wrong := [key for key, value in weights.items() if not torch.equal(loaded[key], value)]:
        raise DataError(f'{path}: {wrong[0]} is another one when it is loaded back')


def main():
    args = parse_args()
    check_name(args.out)
    config = configs.load_config(args)
    if config.model.get('backbone') is None:
        raise ConfigError(f'{args.config}: has no model.backbone, which is what is published')
    config_checks.check_checkpoint(args.checkpoint)
    with DefaultScope.overwrite_default_scope(config.get('default_scope')):
        state = published_state_dict(trained_backbone(config, args.checkpoint))
        weights = {key: value for key, value in state.items() if not key.startswith(PYRAMID)}
        write_weights(weights, args.out)
        check_loads(config, weights, args.out)
    if left_out := len(state) - len(weights):
        print(f'left out: the pyramid, {left_out} tensors')
    print(f'loaded back into a new backbone: {len(weights)} tensors, all the same')
    print(args.out)


if __name__ == '__main__':
    run_reporting_errors(main)
