"""What the tools of OpenMMLab runs share: their options, and the config with these in it."""

import argparse
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper
from mmengine.utils import import_modules_from_strings

from ..errors import ConfigError, UserError, one_line
from .config_names import find_config

OURS = 'kat_mm.openmmlab'  # the module that registers ours


def parser(description: str) -> argparse.ArgumentParser:
    """Returns the parser with the options that training and testing share."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument(
        'config', help='config file, or the name of one, such as kat_mm::NAME or mmdet::FOLDER/NAME'
    )
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
        ConfigError: as `read_config` does.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    config = read_config(args.config, args.cfg_options)
    config.launcher = args.launcher
    if args.work_dir is not None:
        config.work_dir = args.work_dir
    elif config.get('work_dir') is None:
        config.work_dir = str(Path('work_dirs') / Path(config.filename).stem)
    if args.launcher == 'pytorch' and get_device() == 'cpu':
        distribute_on_cpu(config)
    return config


def read_config(name: str, options: dict | None = None) -> Config:
    """Reads a config, overrides settings of it and imports its custom modules.

    Args:
        name: its path, or its name inside a package; see `find_config`.
        options: settings by their dotted keys.

    Raises:
        ConfigError: if there is no such config or it cannot be read.
    """
    path, _ = find_config(name)
    try:
        config = Config.fromfile(path, import_custom_modules=False)
    except UserError:
        raise
    except Exception as error:  # configs are programs
        raise ConfigError(f'config {name} cannot be read: {one_line(error)}') from error
    config.merge_from_dict(options or {})
    if config.get('custom_imports'):
        _import_custom_modules(name, config.custom_imports)
    return config


def _import_custom_modules(name: str, settings: ConfigDict) -> None:
    """Imports the modules of `custom_imports`, and replaces those that no longer register ours."""
    modules = settings.imports if isinstance(settings.imports, list) else [settings.imports]
    old = [
        m for m in modules if f'{m}.'.startswith('kat_mm.') and not f'{m}.'.startswith(f'{OURS}.')
    ]
    if old:
        print_log(
            f'config {name}: custom_imports: {", ".join(old)} registers nothing; {OURS} does, and '
            'is imported instead: change it in the config',
            level=logging.WARNING,
        )
        settings.imports = list(dict.fromkeys(OURS if m in old else m for m in modules))
    try:
        import_modules_from_strings(**settings)
    except ImportError as error:
        raise ConfigError(
            f'config {name}: custom_imports: {one_line(error.__context__ or error)}; the folder of '
            'a custom module must be in PYTHONPATH'
        ) from error


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
    kinds = ('AmpOptimWrapper', AmpOptimWrapper)  # a new-style config names the class
    if wrapper and wrapper.get('type') in kinds and not torch.cuda.is_available():
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
