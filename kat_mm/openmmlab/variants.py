"""The variants of configs that benchmarks compare: as they are, with mm's parts, by CUDA graphs."""

import argparse
from collections.abc import Sequence

import torch
from mmengine.config import Config
from torch import nn

from ..errors import ConfigError
from ..graphs import GraphedParts, graph_parts
from . import configs
from .hooks.cuda_graph import default_parts
from .stock import use_stock_parts

BASELINE = '(stock)'
GRAPHS = '(CUDA graphs)'


def add_variants(parser: argparse.ArgumentParser) -> None:
    """Adds the options that ask for variants."""
    parser.add_argument(
        '--baseline', action='store_true', help='each config with the parts of mm itself, too'
    )
    parser.add_argument(
        '--graphs', action='store_true', help='each config by CUDA graphs, too (on a GPU)'
    )


def variants(args: argparse.Namespace, device: torch.device) -> dict[str, tuple[str, str]]:
    """Returns the config file and the variant of each name that `args` ask for.

    Raises:
        ConfigError: for graphs without a GPU.
    """
    if args.graphs and device.type != 'cuda':
        raise ConfigError('--graphs: there is no GPU here')
    asked = ['', *([BASELINE] if args.baseline else []), *([GRAPHS] if args.graphs else [])]
    return {f'{p} {variant}'.strip(): (p, variant) for variant in asked for p in args.configs}


def read_variant(path: str, options: Sequence[str], variant: str) -> Config:
    """Reads a config as `configs.read_config` does, with the parts of the variant."""
    config = configs.read_config(path, options)
    if variant == BASELINE:
        use_stock_parts(config)
    return config


def graphs_of(model: nn.Module, variant: str) -> GraphedParts | None:
    """Has a model's parts run by graphs, those that the hook takes, if the variant does."""
    return graph_parts(model, default_parts(model)) if variant == GRAPHS else None
