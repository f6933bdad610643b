"""Non-maximum suppression: greedy, soft, and greedy with the suppressed boxes listed.

Boxes are (x1, y1, x2, y2). With `offset` = 1 a box is x2 - x1 + 1 wide: the convention of integer
pixel indices, in which a box includes its last pixel.
"""

import numpy as np
import torch
import torchvision
from torch import Tensor

from kat_mm.detection.nms import MAX_BOXES
from kat_mm.detection.nms import nms as suppress
from kat_mm.rational.op import compiled_devices

from .kernel import kernel, to_float


@kernel
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that greedy suppression keeps, by falling score.

    `boxes` [N, 4], `scores` [N] -> int64 [at most N]. A box goes if its IoU with a kept one is
    above `iou_threshold`.
    """
    boxes, scores = to_float(boxes, scores)
    if offset:
        # The same IoU as with the wider definition of width, and no maths of our own.
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    is_single = boxes.is_cuda and boxes.dtype == torch.float32
    if is_single and len(boxes) <= MAX_BOXES and 'cuda' in compiled_devices():
        # torchvision's kernels gather what is kept in one thread: 2 ms for 8800 boxes.
        indices, counts = suppress(boxes[None], scores[None], iou_threshold)
        return indices[0, : int(counts)]
    return torchvision.ops.nms(boxes, scores, iou_threshold)


@kernel
def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Indices of the boxes that soft suppression keeps, in the order of their rescored scores.

    `boxes` [N, 4] and `scores` [N] on the CPU -> int64 [K]. The first K rows of `dets` [N, 5] are
    set to these boxes and their new scores. Each time the best remaining box is taken, and the
    others' scores are multiplied by a weight that depends on their IoU with it: `method` 0 (naive)
    0 from `iou_threshold` on, 1 (linear) 1 - IoU from `iou_threshold` on, 2 (Gaussian)
    exp(-IoU^2 / sigma). Boxes that fall below `min_score` are dropped; the best one never is.

    Source: Bodla et al., Soft-NMS, arXiv 1704.04503.
    """
    box, score = (tensor.numpy() for tensor in to_float(boxes, scores))
    index = np.arange(len(box))
    kept_boxes, kept_scores, kept_index = [], [], []
    while len(index):
        # Every choice depends on the scores that the one before left, so this loop must stay.
        best = score.argmax()
        kept_boxes.append(box[best])
        kept_scores.append(score[best])
        kept_index.append(index[best])

        rest = np.arange(len(index)) != best
        iou = _iou(box[best], box[rest], offset)
        if method == 0:
            weight = np.where(iou >= iou_threshold, 0, 1)
        elif method == 1:
            weight = np.where(iou >= iou_threshold, 1 - iou, 1)
        elif method == 2:
            weight = np.exp(-(iou**2) / sigma)
        else:
            raise ValueError(f'method is 0 (naive), 1 (linear) or 2 (Gaussian), not {method}')
        box, score, index = box[rest], score[rest] * weight.astype(score.dtype), index[rest]

        alive = score >= min_score
        box, score, index = box[alive], score[alive], index[alive]

    if kept_index:
        kept = np.column_stack([np.stack(kept_boxes), np.stack(kept_scores)])
        dets[: len(kept)] = torch.from_numpy(kept)
    return torch.tensor(kept_index, dtype=torch.int64)


@kernel
def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of box indices: each kept box, followed by those that it suppressed.

    `dets` [N, 5] on the CPU: boxes and scores. Groups, and the members of a group, come by falling
    score. A box is suppressed if its IoU with a kept one is at least `iou_threshold`.
    """
    (dets,) = to_float(dets)
    # The key is negated, not the result reversed, so that equal scores keep their order.
    waiting = torch.argsort(-dets[:, 4], stable=True).numpy()
    boxes = dets[:, :4].numpy()
    groups = []
    while len(waiting):
        kept, rest = waiting[0], waiting[1:]
        suppressed = _iou(boxes[kept], boxes[rest], offset=0) >= iou_threshold
        groups.append([int(kept), *rest[suppressed].tolist()])
        waiting = rest[~suppressed]
    return groups


def _iou(box: np.ndarray, others: np.ndarray, offset: int) -> np.ndarray:
    """IoU of one box [4] with others [N, 4]; 0 where both are empty."""
    size = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]) + offset
    intersection = size.clip(min=0).prod(axis=1)
    area = (box[2:] - box[:2] + offset).prod()
    union = area + (others[:, 2:] - others[:, :2] + offset).prod(axis=1) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union != 0)
