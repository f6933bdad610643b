"""Lets `load_from` take the weights of a bare KAT for a model that has one, and URLs safely."""

from functools import wraps
from types import ModuleType

from ..checkpoint import read_checkpoint, to_kat_keys, weights_of
from ..on_import import when_imported


def let_backbones_load() -> None:
    """Makes mmengine's loading of checkpoints safe for URLs, and fit for bare backbones."""
    when_imported('mmengine.runner', _let_backbones_load)


def _let_backbones_load(package: ModuleType) -> None:
    checkpoint, runner = package.checkpoint, package.runner
    original = checkpoint._load_checkpoint_to_model

    @wraps(original)
    def load(model, content, *args, **kwargs):
        return original(model, place_backbone(model, content), *args, **kwargs)

    checkpoint._load_checkpoint_to_model = runner._load_checkpoint_to_model = load

    def load_from_http(filename, map_location=None, model_dir=None):
        return read_checkpoint(filename)

    checkpoint.CheckpointLoader.register_scheme(
        prefixes=('http://', 'https://'), loader=load_from_http, force=True
    )


def place_backbone(model, content: dict) -> dict:
    """Returns a checkpoint for `model`, given one that may hold its KAT alone.

    That is what has a patch embedding and blocks at its root, and the model does not.
    """
    from ..models.kat import KAT

    names = [name for name, module in model.named_modules() if isinstance(module, KAT)]
    if len(names) != 1 or not names[0]:
        return content
    if any('backbone.' in key for key in weights_of(content)):
        return content
    weights = to_kat_keys(content)
    if not {'patch_embed.proj.weight', 'blocks.0.attn.qkv.weight'} <= weights.keys():
        return content
    return {'state_dict': {f'{names[0]}.{key}': value for key, value in weights.items()}}
