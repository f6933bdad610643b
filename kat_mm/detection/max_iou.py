"""Assigns ground truth to boxes by their overlap, as mmdet's MaxIoUAssigner does, for a batch."""

import torch
from torch import Tensor

from ..rational.op import library

EPS = 1e-6  # the smallest union that mmdet divides by


def assign(
    boxes: Tensor,
    valid: Tensor | None,
    gt_boxes: Tensor,
    gt_counts: Tensor,
    pos_iou: float,
    neg_iou: float | tuple[float, float],
    min_pos_iou: float = 0.0,
    match_low_quality: bool = True,
    gt_max_assign_all: bool = True,
) -> tuple[Tensor, Tensor]:
    """Assigns to each box the ground truth that overlaps it most, background, or nothing.

    A box is assigned to background if its largest IoU lies in `neg_iou`, and to the ground truth of
    its largest IoU, the first of several, if that is at least `pos_iou`. With `match_low_quality`,
    each ground truth then takes the boxes that overlap it most, if their IoU is at least
    `min_pos_iou`; where several ground truths want a box, the last one has it.

    Boxes are (x1, y1, x2, y2), and computed with in fp32.

    Args:
        boxes: [B, N, 4], or [1, N, 4] where all images share them.
        valid: [B, N], False for boxes that are to be left out; None for all.
        gt_boxes: [B, G, 4], padded.
        gt_counts: [B], how many of an image's G boxes are ground truth.
        pos_iou: the least IoU of a positive box.
        neg_iou: the IoU below which a box is negative, or (the least, that below which).
        min_pos_iou: the least IoU of a match of low quality.
        gt_max_assign_all: whether a ground truth takes all boxes of its largest IoU, or the first.

    Returns:
        assigned: [B, N], int64: i + 1 for ground truth i, 0 for background, and -1 for neither and
            for what is not valid. Background everywhere in an image without ground truth.
        max_overlaps: [B, N], the largest IoU with a ground truth; 0 for what is not valid.

    Raises:
        ValueError: for shapes that do not fit.
    """
    low, high = neg_iou if isinstance(neg_iou, (tuple, list)) else (0.0, neg_iou)
    _check(boxes, valid, gt_boxes, gt_counts)
    boxes, gt_boxes = (tensor.detach().float() for tensor in (boxes, gt_boxes))
    return torch.ops.kat_mm.max_iou_assign.default(
        boxes,
        valid,
        gt_boxes,
        gt_counts,
        pos_iou,
        low,
        high,
        min_pos_iou,
        match_low_quality,
        gt_max_assign_all,
    )


def _check(boxes: Tensor, valid: Tensor | None, gt_boxes: Tensor, gt_counts: Tensor) -> None:
    batch, count = len(gt_boxes), boxes.shape[1] if boxes.dim() == 3 else -1
    fits = (
        boxes.dim() == gt_boxes.dim() == 3
        and boxes.shape[2] == gt_boxes.shape[2] == 4
        and len(boxes) in (1, batch)
        and gt_counts.shape == (batch,)
        and (valid is None or valid.shape == (batch, count))
    )
    if not fits:
        shapes = [
            None if x is None else tuple(x.shape) for x in (boxes, valid, gt_boxes, gt_counts)
        ]
        raise ValueError(
            'assign: boxes must be [B or 1, N, 4], valid [B, N] or None, gt_boxes [B, G, 4] and '
            'gt_counts [B], got {}, {}, {} and {}'.format(*shapes)
        )


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Computes the IoU [G, N] of boxes [G, 4] with [N, 4], to the bit as mmdet's bbox_overlaps."""
    area_a, area_b = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b))
    a, b = a[:, None], b[None]
    size = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(0)
    intersection = size[..., 0] * size[..., 1]
    union = area_a[:, None] + area_b - intersection
    return intersection / union.clamp(min=EPS)


def assign_reference(
    boxes: Tensor,
    valid: Tensor | None,
    gt_boxes: Tensor,
    gt_counts: Tensor,
    pos_iou: float,
    neg_low: float,
    neg_high: float,
    min_pos_iou: float,
    match_low_quality: bool,
    gt_max_assign_all: bool,
) -> tuple[Tensor, Tensor]:
    """Computes the op in plain PyTorch, an image at a time."""
    shape = len(gt_boxes), boxes.shape[1]
    assigned = boxes.new_zeros(shape, dtype=torch.int64)
    max_overlaps = boxes.new_zeros(shape)
    if not assigned.numel():
        return assigned, max_overlaps
    numbers = torch.arange(gt_boxes.shape[1], device=boxes.device)
    for i, count in enumerate(gt_counts if len(numbers) else ()):
        is_gt = numbers < count
        iou = overlaps(gt_boxes[i], boxes[i % len(boxes)]).masked_fill_(~is_gt[:, None], -1)
        if valid is not None:
            iou.masked_fill_(~valid[i], -1)
        largest, best = iou.max(0)
        is_negative = (largest >= neg_low) & (largest < neg_high)
        result = torch.where(largest >= pos_iou, best + 1, is_negative.long() - 1)
        if match_low_quality:
            of_gt, box_of_gt = iou.max(1)
            wants = is_gt & (of_gt >= min_pos_iou)
            if gt_max_assign_all:
                takes = (iou == of_gt[:, None]) & wants[:, None]
            else:
                takes = torch.zeros_like(iou, dtype=torch.bool)
                takes.scatter_(1, box_of_gt[:, None], wants[:, None])
            last = (takes * (numbers + 1)[:, None]).amax(0)
            result = torch.where(last > 0, last, result)
        assigned[i] = torch.where(count > 0, result, 0)
        max_overlaps[i] = torch.where(count > 0, largest, 0)
    if valid is not None:
        assigned.masked_fill_(~valid, -1)
        max_overlaps.masked_fill_(~valid, 0)
    return assigned, max_overlaps


library.impl('max_iou_assign', assign_reference, 'CompositeExplicitAutograd')


@torch.library.register_fake('kat_mm::max_iou_assign', lib=library)
def _fake(boxes, valid, gt_boxes, *others):
    shape = len(gt_boxes), boxes.shape[1]
    return boxes.new_empty(shape, dtype=torch.int64), boxes.new_empty(shape)
