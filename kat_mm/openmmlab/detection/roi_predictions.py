"""Detections of mmdet's box and mask heads for a whole batch: suppression by class, and pasting.

The results are those of `predict_by_feat`, in their order. The host waits once, for how many
detections each image has.
"""

from collections.abc import Sequence

import numpy as np
import torch
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmengine.structures import InstanceData
from torch import Tensor

from ...detection import box_deltas, nms, paste_masks
from .ground_truth import to_device


def takes_predictions(head: BBoxHead, cfg: dict | None) -> bool:
    """Returns whether `predict_boxes` computes what a head does with such a test_cfg."""
    own = ('predict_by_feat', '_predict_by_feat_single')
    suppression = (cfg or {}).get('nms') or {}
    return (
        cfg is not None
        and all(getattr(type(head), name) is getattr(BBoxHead, name) for name in own)
        and head.with_cls
        and head.with_reg
        and not (head.custom_cls_channels or head.custom_activation)
        and not head.bbox_coder.add_ctr_clamp
        and suppression.get('type', 'nms') == 'nms'
        and set(suppression) <= {'type', 'iou_threshold', 'split_thr'}
        and 'iou_threshold' in suppression
        and cfg.get('max_per_img', -1) > 0
    )


def predict_boxes(
    head: BBoxHead,
    boxes: Tensor,
    is_box: Tensor,
    cls_score: Tensor,
    bbox_pred: Tensor,
    metas: Sequence[dict],
    cfg: dict,
    rescale: bool,
) -> list[InstanceData]:
    """Returns each image's detections, with `bboxes`, `scores` and `labels`, by falling score.

    Args:
        boxes: [B, K, 4], padded proposals.
        is_box: [B, K], which of them are not padding.
        cls_score: [B * K, classes + 1], logits.
        bbox_pred: [B * K, 4 or 4 * classes], deltas.
        metas: of each image, with `img_shape`, and `scale_factor` where boxes are rescaled.
        cfg: the test_cfg of an RoI head.
        rescale: whether boxes are to be in pixels of the original image.
    """
    batch, count = is_box.shape
    classes = head.num_classes
    scores = cls_score.softmax(-1)[:, :-1].view(batch, count, classes)
    decoded = _decode(head, boxes, bbox_pred, metas, rescale).expand(-1, -1, classes, -1)
    valid = (scores > cfg['score_thr']) & is_box[..., None]

    # mmcv moves the boxes of each class to a place of their own before it takes overlaps. That
    # moves them in fp32, so it is done here as well, though each class is by itself anyway.
    largest = decoded.masked_fill(~valid[..., None], -torch.inf).amax((1, 2, 3), keepdim=True)
    offsets = torch.arange(classes, device=boxes.device)[:, None] * (largest + 1)
    moved = torch.where(valid[..., None], decoded + offsets, 0)
    most = min(cfg['max_per_img'], count)
    kept, counts = nms(
        moved.transpose(1, 2).flatten(0, 1),
        scores.transpose(1, 2).flatten(0, 1),
        cfg['nms']['iou_threshold'],
        valid.transpose(1, 2).flatten(0, 1),
        most,
    )
    is_kept = (torch.arange(most, device=boxes.device) < counts[:, None]).view(batch, -1)
    labels = torch.arange(classes, device=boxes.device)[:, None].expand(classes, most).flatten()
    indices = kept.view(batch, -1) * classes + labels  # into [count, classes]

    # By falling score, and those of equal scores by their indices.
    last = count * classes
    indices = torch.where(is_kept, indices, last).sort(1).values
    is_kept, indices = indices < last, indices.clamp(max=last - 1)
    kept_scores = scores.flatten(1).gather(1, indices).masked_fill(~is_kept, -1)
    kept_scores, order = kept_scores.sort(dim=1, descending=True, stable=True)
    kept_scores = kept_scores[:, : cfg['max_per_img']]
    indices = indices.gather(1, order[:, : cfg['max_per_img']])
    kept_boxes = decoded.flatten(1, 2).gather(1, indices[..., None].expand(-1, -1, 4))
    kept_labels = indices % classes
    numbers = is_kept.sum(1).clamp(max=cfg['max_per_img']).tolist()
    return [
        InstanceData(bboxes=kept_boxes[i, :n], scores=kept_scores[i, :n], labels=kept_labels[i, :n])
        for i, n in enumerate(numbers)
    ]


def _decode(
    head: BBoxHead, boxes: Tensor, bbox_pred: Tensor, metas: Sequence[dict], rescale: bool
) -> Tensor:
    """Returns boxes [B, K, 1 or classes, 4]."""
    coder = head.bbox_coder
    limits = None
    if coder.clip_border:
        sizes = [(w, h, w, h) for h, w, *_ in (meta['img_shape'] for meta in metas)]
        limits = to_device(sizes, boxes.device)[:, None, None]
    deltas = bbox_pred.view(*boxes.shape[:2], -1, 4)
    decoded = box_deltas.decode(boxes[:, :, None], deltas, coder.means, coder.stds, limits)
    if rescale:
        factors = [[1 / s for s in meta['scale_factor']] * 2 for meta in metas]
        decoded = decoded * to_device(factors, boxes.device)[:, None, None]
    return decoded


def takes_masks(head: FCNMaskHead, cfg: dict) -> bool:
    """Returns whether `paste_predictions` computes what a head does with such a test_cfg."""
    own = ('predict_by_feat', '_predict_by_feat_single')
    is_own = all(getattr(type(head), name, None) is getattr(FCNMaskHead, name) for name in own)
    return is_own and cfg['mask_thr_binary'] > 0


def paste_predictions(
    head: FCNMaskHead,
    mask_preds: Tensor,
    results: Sequence[InstanceData],
    metas: Sequence[dict],
    cfg: dict,
    rescale: bool,
) -> None:
    """Adds `masks` [N, H, W], bool, to each image's detections, and rescales their boxes.

    Args:
        mask_preds: [sum of N, 1 or classes, h, w], logits of all images.
        metas: of each image, with `ori_shape` and `scale_factor`.
        rescale: whether boxes and masks are to be those of the original image.
    """
    labels = torch.cat([image.labels for image in results])
    if head.class_agnostic:
        labels = torch.zeros_like(labels)
    rows = torch.arange(len(labels), device=labels.device)
    probabilities = mask_preds[rows, labels].sigmoid().split([len(image) for image in results])
    factors = to_device([[*meta['scale_factor']] * 2 for meta in metas], mask_preds.device)
    for image, masks, meta, factor in zip(results, probabilities, metas, factors, strict=True):
        height, width = meta['ori_shape'][:2]
        if rescale:
            image.bboxes /= factor
        elif len(image):  # mmdet gives no masks the original size
            factor_w, factor_h = map(float, np.float32(meta['scale_factor']))
            height, width = round(height * factor_h), round(width * factor_w)
        image.masks = paste_masks(masks, image.bboxes, (height, width), cfg['mask_thr_binary'])
