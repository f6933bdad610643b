"""Lets `load_from` take the weights of a bare KAT for a model that has one, and read all safely."""

import re
from collections.abc import Mapping
from functools import wraps
from types import ModuleType

from torch import nn

from ...post_import import when_imported
from ...weights.layout import weights_of
from ...weights.reading import read_checkpoint

WRAPPER_NAMES = re.compile(r'^(module\.)+')  # such as that of distributed training


def let_backbones_load() -> None:
    """Makes mmengine's loading of checkpoints safe, and fit for bare backbones."""
    when_imported('mmengine.runner', _let_backbones_load)


def _let_backbones_load(package: ModuleType) -> None:
    checkpoint, runner = package.checkpoint, package.runner
    original = checkpoint._load_checkpoint_to_model

    @wraps(original)
    def load(model, content, *args, **kwargs):
        return original(model, place_backbone(model, content), *args, **kwargs)

    checkpoint._load_checkpoint_to_model = runner._load_checkpoint_to_model = load

    def load_from_any(filename, map_location=None, model_dir=None):
        return read_checkpoint(filename, mmap=False)  # whoever resumes may overwrite the file

    checkpoint.CheckpointLoader.register_scheme(
        prefixes=('', 'http://', 'https://'), loader=load_from_any, force=True
    )
    checkpoint.load_from_http = load_from_any  # which loads what has a name in a model zoo
    read = runner._load_checkpoint

    @wraps(read)
    def read_for_hooks(*args, **kwargs):
        content = read(*args, **kwargs)  # EMAHook takes its state_dict
        return content if 'state_dict' in content else {'state_dict': weights_of(content)}

    runner._load_checkpoint = read_for_hooks


def place_backbone(model: nn.Module, content: Mapping) -> Mapping:
    """Returns a checkpoint for `model`, given one that may hold its KAT alone.

    The weights of that KAT are made to fit, and where the checkpoint is one of the whole model, are
    checked to. Models with no KAT, or more than one, take checkpoints as they do in mmengine.

    Raises:
        DataError: for weights of another architecture, and if there are none.
    """
    from ...models.kat import KAT
    from ...models.pretrained import check_fit

    kats = [(name, module) for name, module in model.named_modules() if isinstance(module, KAT)]
    if len(kats) != 1:
        return content
    [(name, kat)] = kats
    path = WRAPPER_NAMES.sub('', name and f'{name}.')
    weights = weights_of(content)
    bare = {WRAPPER_NAMES.sub('', key): value for key, value in weights.items()}
    part = {k.removeprefix(path): v for k, v in bare.items() if path and k.startswith(path)}
    if part:
        check_fit(kat, part, 'the checkpoint')
        return {'state_dict': weights, **content}
    fitted = kat.adapt_checkpoint(content, 'the checkpoint')
    return {'state_dict': {path + key: value for key, value in fitted.items()}}
