"""The losses of mmdet's box and mask heads over rows of samples, some of which count nothing.

mmdet picks positive rows by a boolean index, and asks the device whether there are any; here all
rows take part, and masks say what counts.
"""

import torch
import torch.nn.functional as F
from mmdet.models.losses import CrossEntropyLoss, L1Loss, SmoothL1Loss
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from torch import Tensor, nn

from ...detection import box_deltas
from .losses import box_loss, softmax_cross_entropy
from .roi_samples import RoISamples


def takes_rows(head: BBoxHead) -> bool:
    """Returns whether `box_losses` computes the losses of a head, at a place for each sample.

    They are a softmax cross entropy and an L1 or smooth L1 loss of deltas, each a mean, of a head
    without batch normalization, in whose statistics rows that fill up would count.
    """
    classes, boxes = getattr(head, 'loss_cls', None), getattr(head, 'loss_bbox', None)
    return (
        type(classes) is CrossEntropyLoss
        and not (classes.use_sigmoid or classes.use_mask)
        and classes.reduction == 'mean'
        and type(boxes) in (L1Loss, SmoothL1Loss)
        and boxes.reduction == 'mean'
        and not head.reg_decoded_bbox
        and head.with_cls
        and head.with_reg
        and not has_batch_norm(head)
    )


def takes_mask_rows(head: FCNMaskHead) -> bool:
    """Returns whether `mask_loss` computes the loss of a head."""
    loss = head.loss_mask
    is_known = type(loss) is CrossEntropyLoss and loss.use_mask and loss.class_weight is None
    return is_known and loss.ignore_index is None and not has_batch_norm(head)


def has_batch_norm(part: nn.Module) -> bool:
    """Returns whether a row's result depends on what other rows there are."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in part.modules())


def box_targets(head: BBoxHead, samples: RoISamples, pos_weight: float) -> tuple[Tensor, ...]:
    """Returns what BBoxHead.get_targets does: labels, their weights, box targets and weights.

    Rows that fill up are background of weight 0.
    """
    is_positive = samples.is_positive
    labels = torch.where(is_positive, samples.gt_labels, head.num_classes)
    positive_weight = pos_weight if pos_weight > 0 else 1.0
    label_weights = torch.where(is_positive, positive_weight, samples.is_sampled.float())
    if head.reg_decoded_bbox:
        targets = samples.gt_boxes
    else:
        coder = head.bbox_coder
        targets = box_deltas.encode(samples.boxes, samples.gt_boxes, coder.means, coder.stds)
    targets = torch.where(is_positive[:, None], targets, 0.0)
    return labels, label_weights, targets, is_positive[:, None].expand(-1, 4).float()


def box_losses(
    head: BBoxHead,
    cls_score: Tensor,
    bbox_pred: Tensor,
    samples: RoISamples,
    targets: tuple[Tensor, ...],
) -> dict[str, Tensor]:
    """Computes what BBoxHead.loss does of the rows that do not fill up, without waiting."""
    labels, label_weights, box_target, box_weights = targets
    count = samples.is_sampled.sum().clamp(min=1)
    counted = (label_weights > 0).sum().clamp(min=1)
    losses = {
        'loss_cls': softmax_cross_entropy(head.loss_cls, cls_score, labels, label_weights, counted)
    }
    is_correct = (cls_score.detach().argmax(1) == labels) & samples.is_sampled
    losses['acc'] = (is_correct.sum() * (100.0 / count))[None]
    if head.reg_class_agnostic:
        prediction = bbox_pred
    else:
        of_classes = bbox_pred.view(len(bbox_pred), head.num_classes, -1)
        # A sum of one number and zeros: the gradient of an index is scattered, here it is written.
        classes = torch.arange(head.num_classes, device=labels.device)
        prediction = torch.where((labels[:, None] == classes)[..., None], of_classes, 0).sum(1)
    losses['loss_bbox'] = box_loss(
        head.loss_bbox, prediction.float(), box_target, box_weights, count
    )
    return losses


def mask_loss(
    head: FCNMaskHead, mask_preds: Tensor, targets: Tensor, labels: Tensor, is_positive: Tensor
) -> Tensor:
    """Computes what a mask head's loss is of the rows that are positive; 0 if there is none.

    Args:
        mask_preds: [R, 1 or classes, h, w], logits.
        targets: [R, h, w].
        labels: [R], the class of each row.
        is_positive: [R].
    """
    rows = torch.arange(len(labels), device=labels.device)
    each = F.binary_cross_entropy_with_logits(mask_preds[rows, labels], targets, reduction='none')
    total = torch.where(is_positive, each.mean((1, 2)), 0).sum()
    return head.loss_mask.loss_weight * (total / is_positive.sum().clamp(min=1))[None]
