"""The losses of anchors that mmdet's modules compute, without their waits for the GPU."""

import torch
import torch.nn.functional as F
from mmdet.models.losses import CrossEntropyLoss, L1Loss, SmoothL1Loss, l1_loss, smooth_l1_loss
from torch import Tensor, nn

from ...detection.constants import constant
from .cross_entropy import softmax_cross_entropy

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
