"""Lets `load_from` take the weights of a bare backbone, and refuse those of another one."""

import re
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import wraps

from mmengine.hooks import EMAHook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import checkpoint
from torch import nn

from ...models.protocol import Backbone
from ...weights.layout import weights_of
from .once import replace

MODULE_PREFIX = ((r'^module\.', ''),)  # mmengine's default for revise_keys
# What wrappers put into names: of distributed training in front, of torch.compile anywhere.
WRAPPER_NAMES = re.compile(r'^((module|_orig_mod)\.)+|(?<=\.)_orig_mod\.')
SOURCE = 'the checkpoint'


def let_backbones_load() -> None:
    """Makes mmengine's loading of checkpoints into models fit for bare backbones."""
    name = '_load_checkpoint_to_model'
    original = getattr(checkpoint, name)
    holders = [
        m for m in [*sys.modules.values()] if getattr(m, '__dict__', {}).get(name) is original
    ]
    replace(checkpoint, name, _place_first)
    for module in holders:  # whatever has imported it by name
        setattr(module, name, getattr(checkpoint, name))
    replace(EMAHook, 'after_load_checkpoint', _take_plain_weights)


def _place_first(load_to_model):
    """Returns mmengine's function that loads into a model, with `place_backbone` before it."""

    @wraps(load_to_model)
    def place_and_load(model, checkpoint, strict=False, logger=None, revise_keys=MODULE_PREFIX):
        placed = place_backbone(model, checkpoint, revise_keys)
        if placed is None:
            return load_to_model(model, checkpoint, strict, logger, revise_keys)
        load_to_model(model, {'state_dict': placed}, strict, logger, revise_keys=[])
        return checkpoint

    return place_and_load


def _take_plain_weights(after_load_checkpoint):
    """Returns the method of EMAHook, which fails on files that are a state dict and no more."""

    @wraps(after_load_checkpoint)
    def take_plain_weights(self, runner, checkpoint):
        if 'state_dict' not in checkpoint:
            # The averaged model becomes a copy of the other at the first iteration.
            checkpoint = {'state_dict': OrderedDict(checkpoint)}
        return after_load_checkpoint(self, runner, checkpoint)

    return take_plain_weights


def place_backbone(
    model: nn.Module, content: Mapping, revise_keys: Sequence[tuple[str, str]] = MODULE_PREFIX
) -> OrderedDict | None:
    """Returns the state dict for `model` in a checkpoint, which may be one of its backbone alone.

    Weights of a bare backbone are made to fit. A checkpoint of the whole model keeps all its keys;
    those of its backbone must fit, or be made to. Names that torch.compile or distributed training
    have put around parts of either are no difference.

    Args:
        model: whatever mmengine loads into.
        content: what the file held.
        revise_keys: as mmengine's, applied to the keys before all else.

    Returns:
        None for models that have no `Backbone`, or more than one: they load as ever.

    Raises:
        DataError: for weights of another architecture, and if there are none.
    """
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):  # as mmengine does
        model = model.module
    backbones = _backbones(model)
    if len(backbones) != 1:
        return None
    [(name, backbone)] = backbones
    path = WRAPPER_NAMES.sub('', name and f'{name}.')

    def named(weights: Mapping) -> dict:
        for pattern, replacement in revise_keys:
            weights = {re.sub(pattern, replacement, key): v for key, v in weights.items()}
        return {WRAPPER_NAMES.sub('', key): value for key, value in weights.items()}

    state = content.get('state_dict', content)  # as mmengine takes it
    placed = named(state)
    part = _part(placed, path)
    if not part:
        weights = weights_of(content, SOURCE)
        placed = named(weights)
        part = _part(placed, path)
    if part:
        fitted = backbone.adapt_checkpoint(part, SOURCE)
    else:
        # With its own keys, what the file held besides them is told too.
        content = content if placed.keys() == weights.keys() else placed
        fitted, placed = backbone.adapt_checkpoint(content, SOURCE), {}
    placed |= {path + key: value for key, value in fitted.items()}
    own = {WRAPPER_NAMES.sub('', key): key for key in checkpoint.get_state_dict(model)}
    placed = OrderedDict((own.get(key, key), value) for key, value in placed.items())
    if hasattr(state, '_metadata'):  # versions of modules, for those that have changed
        placed._metadata = state._metadata
    return placed


def _backbones(model: nn.Module) -> list[tuple[str, Backbone]]:
    """Returns the names of the outermost backbones of a model, and these."""
    found = []
    for name, module in model.named_modules():
        # Wrappers may pass their module's attributes on, and seem to be what it is.
        is_wrapper = is_model_wrapper(module) or '_orig_mod' in module._modules
        inside = any(not outer or name.startswith(f'{outer}.') for outer, _ in found)
        if not is_wrapper and not inside and isinstance(module, Backbone):
            found.append((name, module))
    return found


def _part(weights: Mapping, path: str) -> dict:
    """Returns the weights behind a path, none without one."""
    return {k.removeprefix(path): v for k, v in weights.items() if path and k.startswith(path)}
