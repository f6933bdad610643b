"""All that knows OpenMMLab: importing it registers KAT's parts with mmengine and fills the gaps
between today's torch and the OpenMMLab releases (see `compat.install`).

Configs import it by `custom_imports=dict(imports=['kat_mm.openmmlab'])`.
"""

from importlib.util import find_spec

from ..post_import import when_imported
from . import compat

compat.install()

from .backbone import KAT  # noqa: E402
from .batches.collating import compact_collate  # noqa: E402
from .batches.data_preprocessors import BatchedImgDataPreprocessor  # noqa: E402
from .core_log import forward_core_log  # noqa: E402
from .hooks.checkpoint import SafeCheckpointHook, latest_checkpoint  # noqa: E402
from .hooks.cuda_graph import CUDAGraphHook  # noqa: E402
from .hooks.deferred import DeferredRuntimeInfoHook  # noqa: E402
from .hooks.epoch_seed import EpochSeedHook  # noqa: E402
from .hooks.finite_loss import FiniteLossHook  # noqa: E402
from .hooks.log_processor import MemoryLogProcessor  # noqa: E402
from .hooks.score_range import ScoreRangeHook  # noqa: E402
from .layers import GRKAN  # noqa: E402
from .necks import RescalingFPN, SimplePyramid  # noqa: E402
from .optimizer import KATOptimWrapperConstructor  # noqa: E402

forward_core_log()
if find_spec('mmcv'):
    from .batches import loading  # noqa: F401


def _register_for_mmdet(_) -> None:
    from .batches import detection_data, pack_masks, pad_to_bucket  # noqa: F401
    from .detection import (  # noqa: F401
        batched_roi_head,
        batched_rpn,
        instance_tta,
        roi_extractor,
    )


def _register_for_mmseg(_) -> None:
    from .batches import segmentation_data  # noqa: F401
    from .segmentation import fused_heads, fused_segmentor, losses  # noqa: F401


def _register_mmdets_metric(_) -> None:
    from .detection import coco_metric  # noqa: F401


def _register_mmdets_transforms(_) -> None:
    from .batches import pack_masks  # noqa: F401


def _register_mmsegs_transforms(_) -> None:
    from .batches import segmentation_data  # noqa: F401


when_imported('mmseg.models', _register_for_mmseg, 'register its heads and losses with mmseg')
when_imported('mmdet.models', _register_for_mmdet, 'register its heads and TTA with mmdet')
when_imported('mmseg.datasets', _register_mmsegs_transforms, 'register its transforms with mmseg')
when_imported('mmdet.evaluation', _register_mmdets_metric, 'register its metric with mmdet')
when_imported('mmdet.datasets', _register_mmdets_transforms, 'register its transforms with mmdet')

__all__ = [
    'GRKAN',
    'KAT',
    'BatchedImgDataPreprocessor',
    'CUDAGraphHook',
    'DeferredRuntimeInfoHook',
    'EpochSeedHook',
    'FiniteLossHook',
    'KATOptimWrapperConstructor',
    'MemoryLogProcessor',
    'RescalingFPN',
    'SafeCheckpointHook',
    'ScoreRangeHook',
    'SimplePyramid',
    'compact_collate',
    'latest_checkpoint',
]
