"""Losses of mmseg that ignored pixels do not break."""

from mmseg.models.losses import CrossEntropyLoss
from mmseg.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class WeightedCrossEntropyLoss(CrossEntropyLoss):
    """Cross entropy with weights of classes, for label maps in which pixels are ignored.

    mmseg's CrossEntropyLoss looks up the weight of the ignored label, 255, which has none: an
    IndexError on a CPU, an assertion of the device on a GPU. Here ignored pixels weigh nothing.
    Without them the value is mmseg's; where all pixels are ignored it is 0.
    """

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: Tensor | None = None,
        reduction_override: str | None = None,
        ignore_index: int = -100,
        **options,
    ) -> Tensor:
        is_mean = (reduction_override or self.reduction) == 'mean'
        if self.class_weight is not None and avg_factor is None and is_mean:
            counts = label != ignore_index
            weights = cls_score.new_tensor(self.class_weight)[label.where(counts, 0)]
            avg_factor = weights.where(counts, 0).sum()
        return super().forward(
            cls_score, label, weight, avg_factor, reduction_override, ignore_index, **options
        )
