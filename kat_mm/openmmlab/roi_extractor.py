"""RoI features whose coordinates survive mixed precision. Needs mmdet."""

import torch
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmengine.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class FullPrecisionRoIExtractor(SingleRoIExtractor):
    """Extracts RoI features as mmdet's SingleRoIExtractor does, with coordinates in fp32.

    mmdet casts the RoIs to the dtype of the features. Under bf16 autocast that moves a coordinate
    of 1000 pixels by up to 2, and boxes of a large image are trained on shifted features. Here
    features are pooled in fp32, and the result has the dtype of the features again. Arguments,
    inputs and outputs are those of SingleRoIExtractor.
    """

    def forward(
        self, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None
    ) -> Tensor:
        with torch.autocast(rois.device.type, enabled=False):
            # mmcv's compiled kernels read maps as if they were contiguous, whatever they are.
            wide = tuple(feat.float().contiguous() for feat in feats)
            pooled = super().forward(wide, rois.float(), roi_scale_factor)
        return pooled.to(feats[0].dtype)
