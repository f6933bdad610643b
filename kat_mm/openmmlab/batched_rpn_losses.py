"""The losses of anchors that mmdet's modules compute, without their waits for the GPU."""

from mmdet.models.losses import CrossEntropyLoss, L1Loss, SmoothL1Loss, l1_loss, smooth_l1_loss
from torch import Tensor, nn


def classification_loss(
    loss: nn.Module, scores: Tensor, labels: Tensor, weight: Tensor, avg_factor: Tensor
) -> Tensor:
    """Computes a loss of scores [M, C] by mmdet's module: labels from 0 on, C for background."""
    if type(loss) is CrossEntropyLoss and loss.use_sigmoid and loss.ignore_index is None:
        # With one class, a target for each score saves mmdet to look for the labels that it has.
        return loss(scores[:, 0], (labels == 0).long(), weight, avg_factor=avg_factor)
    return loss(scores, labels, weight, avg_factor=avg_factor)


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
