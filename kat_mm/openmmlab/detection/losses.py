"""Losses that mmdet's modules compute, of anchors and of RoIs, without their waits for the GPU."""

import torch
import torch.nn.functional as F
from mmdet.models.losses import CrossEntropyLoss, L1Loss, SmoothL1Loss, l1_loss, smooth_l1_loss
from torch import Tensor, nn

from ...detection.constants import constant

EPS = torch.finfo(torch.float32).eps  # what mmdet adds to what it divides by


def classification_loss(
    loss: nn.Module, scores: Tensor, labels: Tensor, weight: Tensor, avg_factor: Tensor
) -> Tensor:
    """Computes a loss of scores [M, C] by mmdet's module: labels from 0 on, C for background.

    The cross entropy of one class is computed here: mmdet looks for the labels that it has.
    """
    if type(loss) is CrossEntropyLoss and not (loss.use_sigmoid or loss.use_mask):
        return softmax_cross_entropy(loss, scores, labels, weight, avg_factor)
    if type(loss) is not CrossEntropyLoss or loss.use_mask or loss.ignore_index is not None:
        return loss(scores, labels, weight, avg_factor=avg_factor)
    positive = loss.class_weight and constant(loss.class_weight, scores)
    target = (labels == 0).to(scores.dtype)
    total = F.binary_cross_entropy_with_logits(
        scores[:, 0], target, weight, pos_weight=positive, reduction='sum'
    )
    return loss.loss_weight * (total / (avg_factor + EPS))


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


def box_loss(
    loss: nn.Module, predicted: Tensor, wanted: Tensor, weight: Tensor, avg_factor: Tensor
) -> Tensor:
    """Computes a loss of boxes or deltas [M, 4] by mmdet's module or, without its look for a weight
    above 0, by mmdet's function."""
    if type(loss) is L1Loss:
        value = l1_loss(predicted, wanted, weight, loss.reduction, avg_factor)
        return loss.loss_weight * value
    if type(loss) is SmoothL1Loss:
        value = smooth_l1_loss(
            predicted,
            wanted,
            weight,
            beta=loss.beta,
            reduction=loss.reduction,
            avg_factor=avg_factor,
        )
        return loss.loss_weight * value
    return loss(predicted, wanted, weight, avg_factor=avg_factor)
