"""Which parts of a model a checkpoint leaves without weights."""

import logging
import re

from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn

from ..errors import DataError
from ..weights.layout import weights_of
from ..weights.reading import read_checkpoint
from .compat.load_from import MODULE_PREFIX, place_backbone
from .config_checks import is_local

STATISTICS = ('running_mean', 'running_var')  # the buffers that are learnt
SHOWN = 8


def check_all_loaded(model: nn.Module, path: str) -> None:
    """Checks that a local checkpoint has weights for every part of a model, and loads them.

    Raises:
        DataError: names the parts that would stay random.
    """
    if parts := is_local(path) and parts_without_weights(model, path):
        raise DataError(
            f'checkpoint {path} has no weights that fit for {parts}: scores would be those of a '
            'partly random model. Give the checkpoint of a whole model that this config trained'
        )


def warn_of_random_parts(model: nn.Module, path: str | None) -> None:
    """Logs which parts of a model a local checkpoint, from which training starts, leaves random."""
    if path and is_local(path) and (parts := parts_without_weights(model, path)):
        print_log(
            f'checkpoint {path} has no weights that fit for {parts}: these start as initialized',
            'current',
            logging.WARNING,
        )


def parts_without_weights(model: nn.Module, path: str) -> str:
    """Returns the largest parts of a model that get nothing from a checkpoint, '' for none.

    Loads the weights, as mmengine does, to find out: modules may rename those of older versions.
    """
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    content = read_checkpoint(path)
    weights = place_backbone(model, content)
    if weights is None:
        weights = weights_of(content, f'checkpoint {path}')
        for pattern, replacement in MODULE_PREFIX:
            weights = {re.sub(pattern, replacement, key): v for key, v in weights.items()}
    own = model.state_dict(keep_vars=True)
    fitting = {k: v for k, v in weights.items() if k not in own or own[k].shape == v.shape}
    missing = set(model.load_state_dict(fitting, strict=False).missing_keys)
    loaded = {id(value) for key, value in own.items() if key not in missing}
    learnt = {
        key
        for key, value in own.items()
        if isinstance(value, nn.Parameter) or key.rpartition('.')[2] in STATISTICS
    }
    missing = {key for key in missing & learnt if id(own[key]) not in loaded}  # tied weights
    parts = _largest(model, '', learnt, missing)
    more = f' and {len(parts) - SHOWN} other parts' if len(parts) > SHOWN else ''
    return ', '.join(parts[:SHOWN]) + more


def _largest(module: nn.Module, path: str, learnt: set, missing: set) -> list[str]:
    """Returns the names of the outermost parts of a module of which all weights are missing."""
    found = []
    for name, _ in module.named_parameters(recurse=False):
        if path + name in missing:
            found.append(path + name)
    for name in STATISTICS:
        if path + name in missing:
            found.append(path + name)
    for name, child in module.named_children():
        prefix = f'{path}{name}.'
        whole = {key for key in learnt if key.startswith(prefix)}
        lacking = {key for key in missing if key.startswith(prefix)}
        if lacking and lacking == whole:
            found.append(f'{path}{name}')
        elif lacking:
            found += _largest(child, prefix, whole, lacking)
    return found
