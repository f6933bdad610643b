"""What the command-line tools share: configs, checks before work starts, errors in one line."""

import argparse
import difflib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.dataset import Compose
from mmengine.device import get_device
from mmengine.logging import print_log

from ..checkpoint import is_hub_id, read_checkpoint, weights_of
from ..datasets.loading import LoadCheckedImage, LoadCheckedLabelMap
from ..errors import ConfigError, DataError, UserError

BAD_IMAGE = 'failed to load image: '  # mm's loader asserts it, with the name
DEMO = 'or try the embedded data set: make demo'
ADE20K = 'http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip'


def run_reporting_errors(main: Callable[[], None]) -> None:
    """Runs `main`; what the user can mend ends it with one line on stderr and exit status 1."""
    try:
        main()
    except (UserError, AssertionError) as error:
        # Loader workers and mm's registries wrap the message; its last line is our own.
        message = (str(error).strip().splitlines() or [''])[-1]
        if isinstance(error, AssertionError) and BAD_IMAGE not in message:
            raise
        message = re.sub(r'^([\w.]+Error: )?(class `\w+` in \S+: )*', '', message)
        print(f'error: {message}', file=sys.stderr)
        sys.exit(1)


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


def _is_local(path: str) -> bool:
    return '://' not in path and not re.match(r'\w+:', path)


def check_data(config: Config, *splits: str) -> None:
    """Checks that the files and folders of the data sets of some splits exist.

    Of segmentation data sets it also loads the first label maps.

    Raises:
        DataError: names the first that is missing or does not fit, and ways out.
    """
    for split in splits:
        for dataset in nested(config.get(f'{split}_dataloader'), 'data_root'):
            root = str(dataset['data_root'] or '')
            parts = [dataset.get('ann_file'), *dict(dataset.get('data_prefix') or {}).values()]
            for part in ['', *(p for p in parts if isinstance(p, str))]:
                path = Path(root, part)
                if root and _is_local(root) and _is_local(part) and not path.exists():
                    raise DataError(_missing_data(root, path))
            if root and _is_local(root) and is_segmentation(config):
                _check_label_maps(dataset)
        for metric in nested(config.get(f'{split}_evaluator'), 'ann_file'):
            path = metric['ann_file']
            if path and _is_local(path) and not Path(path).exists():
                raise DataError(f'{split}_evaluator.ann_file: {path} does not exist')


def _missing_data(root: str, path: Path) -> str:
    missing = f'data set not found in {root!r}: {path} does not exist'
    name = Path(root).name
    if name == 'digit_scenes':
        return f'{missing}. Make it with: python tools/make_digit_scenes.py {root}'
    if name == 'ADEChallengeData2016':
        return (
            f'{missing}. Unpack {ADE20K} in {Path(root).parent} (images and annotations, each of '
            f'training and validation), {DEMO}-seg'
        )
    return f'{missing}. Put or link the data set there, {DEMO}'


def _check_label_maps(dataset: ConfigDict, count: int = 20) -> None:
    """Loads the first images and label maps of a data set, if it is one of mmseg's."""
    from mmseg.datasets import BaseSegDataset
    from mmseg.registry import DATASETS

    kind = dataset['type']
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    if kind is None or not issubclass(kind, BaseSegDataset):
        return
    built = DATASETS.build({**dataset, 'pipeline': [], 'lazy_init': True})
    samples = built.load_data_list()[:count]
    if not samples:
        raise DataError(
            f'{built.data_prefix["img_path"]} holds no image *{built.img_suffix}. Put the images '
            'there, or set img_suffix of the data set'
        )
    if classes := built.metainfo.get('classes'):
        load = Compose([LoadCheckedImage(), LoadCheckedLabelMap(len(classes))])
        for sample in samples:
            load(sample)


def check_checkpoint(path: str, resume: bool = False) -> None:
    """Checks that a local checkpoint can be read, and with `resume` that training can go on.

    Raises:
        DataError: names the file, what is wrong with it and what to do.
    """
    if not _is_local(path):
        return
    content = read_checkpoint(path)
    weights_of(content, f'checkpoint {path}')
    if resume and (missing := {'meta', 'message_hub', 'optimizer'} - set(content)):
        raise DataError(
            f'checkpoint {path} cannot be resumed: it has no {", ".join(sorted(missing))}. To '
            f'start from its weights: --cfg-options load_from={path}'
        )


def check_pretrained(config: Config) -> None:
    """Checks the local weights that the model's init_cfg or `pretrained` names.

    Raises:
        DataError: names the file and ways out.
    """
    names = {'checkpoint': 'model.backbone.init_cfg.checkpoint', 'pretrained': 'model.pretrained'}
    for key, name in names.items():
        for settings in nested(config.get('model'), key):
            path = settings[key]
            if not isinstance(path, str) or not _is_local(path):
                continue
            if is_hub_id(path):  # downloaded now, so that training starts with it or not at all
                read_checkpoint(path)
                continue
            if not Path(path).exists():
                raise DataError(
                    f'pretrained weights {path} not found. Put the file there, set {name}, or '
                    f'train from scratch with --cfg-options {name.removesuffix(".checkpoint")}=None'
                )
            check_checkpoint(path)
