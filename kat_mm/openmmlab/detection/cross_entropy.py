"""mmdet's softmax cross entropy, whose weights of classes are copied to the GPU only once."""

from mmdet.models.losses import CrossEntropyLoss
from torch import Tensor

from ...detection.constants import constant


def softmax_cross_entropy(
    loss: CrossEntropyLoss, scores: Tensor, labels: Tensor, weight: Tensor, avg_factor: Tensor
) -> Tensor:
    """Computes what a CrossEntropyLoss without use_sigmoid and use_mask does.

    mmdet makes a tensor of its list of class weights in each call, for which the host waits.

    Args:
        scores: [M, C], logits.
        labels: [M], int64.
        weight: [M].
        avg_factor: what the sum is divided by, a tensor of one number.
    """
    of_classes = loss.class_weight
    value = loss.cls_criterion(
        scores,
        labels,
        weight,
        class_weight=None if of_classes is None else constant(of_classes, scores),
        reduction=loss.reduction,
        avg_factor=avg_factor,
        ignore_index=loss.ignore_index,
        avg_non_ignore=loss.avg_non_ignore,
    )
    return loss.loss_weight * value
