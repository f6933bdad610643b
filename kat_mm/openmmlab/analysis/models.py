"""Models from configs and checkpoints, as they are, along their training and at its start."""

import logging
import re
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger, print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from ...attention.mimetic import skip_mimetic_init
from ...errors import ConfigError, DataError
from ...weights.layout import weights_of
from ...weights.reading import read_checkpoint
from ..checkpoint_checks import check_all_loaded, parts_without_weights
from ..config_checks import is_local
from ..configs import type_name
from ..hooks.checkpoint import latest_checkpoint
from .seeds import seeded

KEEP_ALL = 'default_hooks.checkpoint.interval=... default_hooks.checkpoint.max_keep_ckpts=-1'


def find_checkpoint(path: str) -> Path:
    """Returns the checkpoint of a path: a file, or the last one of a run's folder.

    Raises:
        DataError: for a folder without one, and for what is no file here.
    """
    if not is_local(path):
        raise DataError(f'checkpoint {path}: must be a file here; download it first')
    if Path(path).is_dir():
        found = latest_checkpoint(path)
        if found is None:
            raise DataError(
                f'folder {path} has no checkpoint (epoch_*.pth, iter_*.pth): name the work dir of '
                'a training run, or a checkpoint file'
            )
        return Path(found)
    return Path(path)


def build_trained(config: Config, checkpoint: Path, device: torch.device) -> nn.Module:
    """Builds the model of a config with the weights of a checkpoint, in evaluation mode.

    Raises:
        DataError: for a checkpoint that cannot be read, or lacks weights for a part.
        ConfigError: for a config without a model.
    """
    with skip_mimetic_init():
        model = _build(config)
    try:
        check_all_loaded(model, str(checkpoint))  # loads them, too
    except DataError as error:
        if str(checkpoint) in str(error):
            raise
        raise DataError(f'checkpoint {checkpoint} does not fit the config: {error}') from error
    return model.to(device).eval()


def _build(config: Config) -> nn.Module:
    if 'model' not in config:
        raise ConfigError(f'config {config.filename} has no model')
    with DefaultScope.overwrite_default_scope(config.get('default_scope')):
        return revert_sync_batchnorm(MODELS.build(config.model))


class Saved(NamedTuple):
    """A checkpoint of a run."""

    iteration: int
    path: Path


def path_of_training(checkpoint: Path) -> list[Saved]:
    """Returns the checkpoints of the folder of one, up to this one, sorted by iteration."""
    folder = checkpoint.parent
    files = [p for p in folder.iterdir() if re.fullmatch(r'(epoch|iter)_\d+\.pth', p.name)]
    steps: dict[int, Path] = {}
    for path in {*files, checkpoint}:
        content = read_checkpoint(path)
        meta = content.get('meta') if isinstance(content, dict) else None
        iteration = (meta or {}).get('iter')
        if iteration is None:
            iteration = int((re.findall(r'\d+', path.stem) or [0])[-1])
        if path == checkpoint or iteration not in steps:
            steps[iteration] = path
    last = next(step for step, path in steps.items() if path == checkpoint)
    return [Saved(step, steps[step]) for step in sorted(steps) if step <= last]


def check_spans_plane(files: list[Saved]) -> None:
    """Checks that there are enough checkpoints for the plane of a training path.

    Raises:
        DataError: for fewer than three.
    """
    if len(files) < 3:
        name = files[-1].path
        raise DataError(
            f'folder {name.parent} has {len(files)} checkpoints of a run up to {name.name}, and a '
            f'plane needs three: train with --cfg-options {KEEP_ALL}'
        )


def load_states(model: nn.Module, files: list[Saved]) -> list[dict[str, Tensor]]:
    """Reads the weights of checkpoints, which stay in their files until they are used.

    Raises:
        DataError: names the first file whose weights are not those of the model.
    """
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    states = []
    for _, path in files:
        weights = weights_of(read_checkpoint(path), f'checkpoint {path}')
        weights = {key.removeprefix('module.'): value for key, value in weights.items()}
        for name, shape in shapes.items():
            if name not in weights or weights[name].shape != shape:
                what = 'lacks' if name not in weights else 'has another shape of'
                raise DataError(
                    f'checkpoint {path} {what} {name}: it is of another model than the config; '
                    'take it out of the folder, or name the folder of the run'
                )
        states.append(weights)
    return states


def _loops_by_iteration(config: Config) -> bool:
    settings = config.get('train_cfg') or {}
    if 'type' in settings:
        return type_name(settings) == 'IterBasedTrainLoop'
    return not settings.get('by_epoch', True)


def redraw(config: Config, checkpoint: Path, device: torch.device) -> dict[str, Tensor] | None:
    """Draws the weights that training started from once more, as mmengine's runner does.

    The seed is the one that the checkpoint tells. Whether these really are the start, which also
    takes the same versions and kind of device, `kat_mm.analysis.start.is_the_start` tells.

    Returns:
        The weights on the CPU; None where the checkpoint tells no seed.
    """
    content = read_checkpoint(checkpoint)
    meta = content.get('meta') if isinstance(content, dict) else None
    seed = (meta or {}).get('seed')
    if seed is None:
        return None
    level = MMLogger.get_current_instance().level
    with seeded(seed, device):
        model = _build(config).to(device)
        if _loops_by_iteration(config):
            # Before weights are initialised, the loop's loader has drawn a seed for its workers.
            torch.empty((), dtype=torch.int64).random_()
        # mm logs each parameter that it initialises.
        MMLogger.get_current_instance().setLevel(logging.ERROR)
        try:
            if hasattr(model, 'init_weights'):
                model.init_weights()
        finally:
            MMLogger.get_current_instance().setLevel(level)
    source = config.get('load_from')
    if source and is_local(source):
        if not Path(source).exists():
            print_log(f'load_from {source} does not exist: no start', level=logging.WARNING)
            return None
        parts_without_weights(model, source)  # loads what fits
    return {name: value.cpu() for name, value in model.state_dict().items()}
