"""Puts KAT, or another backbone, into any config of mmdet or mmseg: `swap_backbone`, and what reads
and writes configs.

`probe.py` runs the old backbone to learn what maps it gives, `model.py` and `training.py` change
the config, `ops.py` looks for ops that are missing here, `source.py` reads the config and writes
it as a small one that inherits the old one.
"""

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.utils import import_modules_from_strings

from ...attention.mimetic import skip_mimetic_init
from ...errors import one_line
from .edits import MISSING, Change, Edits
from .model import drop_weights, find_backbone, fit_images, put_backbone, put_kat
from .ops import called_ops
from .probe import CannotSwap, build, kind, probe
from .source import read_config, write_config
from .training import fit_hooks, fit_imports, fit_optimizer, fit_precision

__all__ = ['MISSING', 'CannotSwap', 'Change', 'read_config', 'swap_backbone', 'write_config']


def swap_backbone(
    config: Config,
    arch: str | dict = 'small',
    checkpoint: str | None = None,
    layer_decay: float | None = None,
    backbone: dict | None = None,
) -> list[Change]:
    """Replaces the backbone of a config by KAT, with all that depends on it, in place.

    Prints which of mmcv's ops the model calls, for training or for prediction, where no compiled
    mmcv is installed.

    Args:
        config: config of a detector or segmentor, read without importing its custom modules.
        arch: size of KAT, as its `arch`.
        checkpoint: path or URL of KAT's weights; None trains from scratch.
        layer_decay: rate of layer-wise learning rate decay; None leaves it as the config has it.
        backbone: config of another backbone to put there instead, whose maps have the strides of
            the old one's; it needs the members of `kat_mm.models.protocol.Backbone`.

    Raises:
        CannotSwap: if the backbone cannot be replaced, or the model calls an op that is missing
            here; the config is then half changed.
    """
    edits = Edits(config)
    place = find_backbone(edits)
    scope = config.get('default_scope')
    if config.get('custom_imports'):
        import_modules_from_strings(config.custom_imports.imports, allow_failed_imports=True)
    maps = probe(edits.get(f'{place}.backbone'), scope)
    if backbone is None:
        put_kat(edits, place, maps, arch, checkpoint)
    else:
        put_backbone(edits, place, maps, dict(backbone), scope)
    fit_images(edits, place)
    drop_weights(edits, place)
    parameters = _parameters(edits, scope)
    fit_optimizer(edits, parameters, layer_decay)
    fit_precision(edits)
    fit_hooks(edits)
    fit_imports(edits)
    return edits.changes


def _parameters(edits: Edits, scope: str | None) -> set[str]:
    """Returns the names of the new model's parameters, and so makes sure that it can be built.

    Raises:
        CannotSwap: if it cannot, or could not run for want of ops.
    """

    def examine(model):
        return set(dict(model.named_parameters())), called_ops(model)

    try:
        with skip_mimetic_init():  # takes long, and changes values alone
            parameters, ops = build(edits.get('model'), scope, examine)
    except Exception as error:  # whatever the model's author did not foresee
        raise CannotSwap(
            f'{kind(edits.get("model"))} cannot be built with the new backbone here: '
            f'{one_line(error)}'
        ) from error
    if ops.missing:
        missing = ', '.join(f'{op} (by {part})' for op, part in sorted(ops.missing.items()))
        raise CannotSwap(
            f'{kind(edits.get("model"))} calls mmcv ops that are missing here: {missing}; install '
            'an mmcv that is compiled for this torch'
        )
    if ops.supplied:
        print_log(
            f'no compiled mmcv is installed: of the ops that {kind(edits.get("model"))} calls, '
            f'kat_mm runs {", ".join(sorted(ops.supplied))} on PyTorch'
        )
    return parameters
