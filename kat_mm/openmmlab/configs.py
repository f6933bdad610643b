"""What the tools of OpenMMLab runs share: their options, and the config with these in it."""

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.utils import import_modules_from_strings

from ..errors import ConfigError, UserError, one_line
from .config_names import find_config
from .distributed import distribute_on_cpu
from .settings import apply_settings, parse_settings

OURS = 'kat_mm.openmmlab'  # the module that registers ours


def parser(description: str) -> argparse.ArgumentParser:
    """Returns the parser with the options that training and testing share."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument(
        'config', help='config file, or the name of one, such as kat_mm::NAME or mmdet::FOLDER/NAME'
    )
    result.add_argument('--work-dir', help='where logs, checkpoints and results go')
    add_settings(result)
    result.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes of distributed training',
    )
    # torch.distributed.launch passes it in this way, torchrun in the environment.
    result.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return result


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds --cfg-options, whose texts `read_config` takes."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action='extend',
        default=[],
        metavar='KEY=VALUE',
        help='settings that override the config, such as train_cfg.max_epochs=12',
    )


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
    if args.launcher == 'pytorch' and 'RANK' not in os.environ:
        raise ConfigError(
            '--launcher pytorch: the program must be started by torchrun --nproc_per_node=NUMBER '
            f'{sys.argv[0]} ...'
        )
    if args.launcher == 'pytorch' and get_device() == 'cpu':
        distribute_on_cpu(config)
    return config


def read_config(name: str, options: Sequence[str] = ()) -> Config:
    """Reads a config, overrides settings of it and imports its custom modules.

    Args:
        name: its path, or its name inside a package; see `find_config`.
        options: settings, each KEY=VALUE with a dotted key; see `settings`.

    Raises:
        ConfigError: if there is no such config, it cannot be read, or an option does not fit it.
    """
    path, _ = find_config(name)
    settings = parse_settings(options)
    try:
        config = Config.fromfile(path, import_custom_modules=False)
        for _ in nested(config._cfg_dict, 'type'):  # builds what a new-style config imports
            pass
    except UserError:
        raise
    except Exception as error:  # configs are programs
        raise ConfigError(f'config {name} cannot be read: {one_line(error)}') from error
    imports = {key: settings.pop(key) for key in [*settings] if key.startswith('custom_imports')}
    apply_settings(config, imports)
    if config.get('custom_imports'):
        _import_custom_modules(name, config.custom_imports)
    apply_settings(config, settings)
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


def use_full_precision_on_cpu(config: Config) -> None:
    """Turns mixed precision off where there is no accelerator, for which alone mm offers it."""
    wrapper = config.get('optim_wrapper')
    if wrapper and type_name(wrapper) == 'AmpOptimWrapper' and not torch.cuda.is_available():
        print_log('no GPU: training in fp32 instead of mixed precision', level=logging.WARNING)
        wrapper.type = 'OptimWrapper'
        for key in ('dtype', 'loss_scale', 'use_fp64'):
            wrapper.pop(key, None)


def is_segmentation(config: Config) -> bool:
    """Tells whether a config is one of mmseg; without a default scope, its model's class tells."""
    if scope := config.get('default_scope'):
        return scope == 'mmseg'
    kind = (config.get('model') or {}).get('type')
    return getattr(kind, '__module__', str(kind)).partition('.')[0] == 'mmseg'


def type_name(settings: dict) -> str:
    """Returns the name of the type of a dict, which a new-style config gives as a class."""
    kind = settings.get('type')
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]


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
