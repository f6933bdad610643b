"""RoI features whose coordinates survive mixed precision, pooled in one launch. Needs mmdet."""

from collections.abc import Sequence

import torch
from mmcv.ops import RoIAlign
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmengine.registry import MODELS
from torch import Tensor

from ...detection import multilevel_roi_align
from ...detection.roi_align import MAX_LEVELS, MAX_SIDE


@MODELS.register_module()
class FullPrecisionRoIExtractor(SingleRoIExtractor):
    """Extracts RoI features as mmdet's SingleRoIExtractor does, with coordinates in fp32.

    mmdet casts the RoIs to the dtype of the features. Under bf16 autocast that moves a coordinate
    of 1000 pixels by up to 2, and boxes of a large image are trained on shifted features. Here
    coordinates and arithmetic are fp32, and the result has the dtype of the features. Arguments,
    inputs and outputs are those of SingleRoIExtractor.

    RoIAlign with mean pooling takes kat_mm.detection.multilevel_roi_align, which pools all levels
    at once and reads the features as they are; other layers pool fp32 copies of them.
    """

    def forward(
        self, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None
    ) -> Tensor:
        if is_poolable(self):
            return pool_rois(self, feats, rois, roi_scale_factor)
        with torch.autocast(rois.device.type, enabled=False):
            # mmcv's compiled kernels read maps as if they were contiguous, whatever they are.
            wide = tuple(feat.float().contiguous() for feat in feats)
            pooled = super().forward(wide, rois.float(), roi_scale_factor)
        return pooled.to(feats[0].dtype)


def is_poolable(extractor: SingleRoIExtractor) -> bool:
    """Returns whether `pool_rois` computes what an extractor does."""
    layers = list(getattr(extractor, 'roi_layers', ()))
    return (
        type(extractor) in (SingleRoIExtractor, FullPrecisionRoIExtractor)
        and 0 < len(layers) <= MAX_LEVELS
        and all(type(layer) is RoIAlign and layer.pool_mode == 'avg' for layer in layers)
        and max(layers[0].output_size) <= MAX_SIDE
    )


def pool_rois(
    extractor: SingleRoIExtractor,
    maps: Sequence[Tensor],
    rois: Tensor,
    roi_scale_factor: float | None = None,
    *,
    channels_last: bool = False,
) -> Tensor:
    """Computes the features that an extractor gives RoIs [K, 5], in fp32 and one launch.

    RoIs of a negative image index are padding, and get zeros.
    """
    maps, rois = list(maps), rois.float()
    layer = extractor.roi_layers[0]
    levels = None
    if len(maps) == 1:
        levels = torch.zeros(len(rois), dtype=torch.int64, device=rois.device)
    elif roi_scale_factor is not None:  # which mmdet applies when the levels are chosen
        levels = extractor.map_roi_levels(rois, len(maps))
        rois = extractor.roi_rescale(rois, roi_scale_factor)
    return multilevel_roi_align(
        maps,
        rois,
        levels,
        tuple(layer.output_size),
        [layer.spatial_scale for layer in extractor.roi_layers[: len(maps)]],
        max(layer.sampling_ratio, 0),
        layer.aligned,
        finest_scale=extractor.finest_scale,
        channels_last=channels_last,
    )
