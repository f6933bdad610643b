"""What the tools of OpenMMLab runs share: their options, and the config with these in it."""

import argparse
import difflib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.logging import print_log

from ..errors import ConfigError


def parser(description: str) -> argparse.ArgumentParser:
    """Returns the parser with the options that training and testing share."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument('config', help='config file')
    result.add_argument('--work-dir', help='where logs, checkpoints and results go')
    result.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        help='settings that override the config, such as train_cfg.max_epochs=12',
    )
    result.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes of distributed training',
    )
    # torch.distributed.launch passes it in this way, torchrun in the environment.
    result.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return result


def load_config(args: argparse.Namespace) -> Config:
    """Reads the config and puts the shared options in.

    Raises:
        ConfigError: if there is no such file; it names the closest ones.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    # mmengine reads `_base_ = 'mmdet::...'` through it, once for each such line.
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
    path = Path(args.config)
    if not path.is_file():
        known = [str(p) for p in (path.parent if path.parent.is_dir() else Path()).glob('*.py')]
        known += [str(p) for p in Path('configs').glob('**/*.py') if '_base_' not in p.parts]
        close = difflib.get_close_matches(args.config, sorted(set(known)), 3, 0.5)
        hint = f'did you mean {" or ".join(close)}?' if close else 'configs are in configs/'
        raise ConfigError(f'config {args.config} does not exist; {hint}')
    try:
        config = Config.fromfile(path)
    except (OSError, SyntaxError) as error:  # of the file or of one that it inherits from
        raise ConfigError(f'config {path} cannot be read: {_one_line(error)}') from error
    config.merge_from_dict(args.cfg_options)
    config.launcher = args.launcher
    if args.work_dir is not None:
        config.work_dir = args.work_dir
    elif config.get('work_dir') is None:
        config.work_dir = str(Path('work_dirs') / path.stem)
    if args.launcher == 'pytorch' and get_device() == 'cpu':
        distribute_on_cpu(config)
    return config


def distribute_on_cpu(config: Config) -> None:
    """Joins the processes that torchrun has started; mmengine itself asks for a GPU for each."""
    torch.distributed.init_process_group('gloo')
    wrapper = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=config.get('find_unused_parameters', False),
    )
    config.setdefault('model_wrapper_cfg', wrapper)


def use_full_precision_on_cpu(config: Config) -> None:
    """Turns mixed precision off where there is no accelerator, for which alone mm offers it."""
    wrapper = config.get('optim_wrapper')
    if wrapper and wrapper.get('type') == 'AmpOptimWrapper' and not torch.cuda.is_available():
        print_log('no GPU: training in fp32 instead of mixed precision', level=logging.WARNING)
        wrapper.type = 'OptimWrapper'
        for key in ('dtype', 'loss_scale', 'use_fp64'):
            wrapper.pop(key, None)


def is_segmentation(config: Config) -> bool:
    return config.get('default_scope') == 'mmseg'


def nested(node, key: str) -> Iterator[ConfigDict]:
    """Yields every dict in `node` that has `key`, outermost first."""
    if isinstance(node, dict):
        if key in node:
            yield node
        for value in node.values():
            yield from nested(value, key)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from nested(value, key)


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())
