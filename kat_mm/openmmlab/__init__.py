"""All that knows OpenMMLab: importing it registers KAT's parts with mmengine and fills the gaps
between today's torch and the OpenMMLab releases (see `compat.install`).

Configs import it by `custom_imports=dict(imports=['kat_mm.openmmlab'])`.
"""

from importlib.util import find_spec

from ..post_import import when_imported
from . import compat

compat.install()

from mmengine.registry import MODELS  # noqa: E402

from ..models.ffn.gr_kan import GRKAN  # noqa: E402
from ..models.kat import KAT  # noqa: E402
from ..models.pyramid import LayerNorm2d, SimplePyramid  # noqa: E402
from ..rational import GroupRational  # noqa: E402
from .hooks.checkpoint import SafeCheckpointHook, latest_checkpoint  # noqa: E402
from .hooks.epoch_seed import EpochSeedHook  # noqa: E402
from .hooks.finite_loss import FiniteLossHook  # noqa: E402
from .hooks.log_processor import MemoryLogProcessor  # noqa: E402
from .optimizer import KATOptimWrapperConstructor  # noqa: E402

if find_spec('mmcv'):
    from . import loading  # noqa: F401
for _module in (GroupRational, GRKAN, SimplePyramid):
    MODELS.register_module(module=_module)
# The name that pyramids and heads of OpenMMLab know it by, in norm_cfg.
MODELS.register_module('LN2d', module=LayerNorm2d)


def _register_for_mmdet(_) -> None:
    from . import instance_tta, roi_extractor  # noqa: F401


when_imported('mmdet.models', _register_for_mmdet)

__all__ = [
    'KAT',
    'EpochSeedHook',
    'FiniteLossHook',
    'KATOptimWrapperConstructor',
    'MemoryLogProcessor',
    'SafeCheckpointHook',
    'latest_checkpoint',
]
