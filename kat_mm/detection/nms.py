"""The torch op kat_mm::nms: greedy non-maximum suppression of many sets of boxes at once."""

import math

import torch
from torch import Tensor

from ..rational.op import library

BLOCK = 64  # boxes that plain PyTorch resolves at a time
MAX_BOXES = 47 * 1024 // 8 * 64  # of a problem on a GPU, whose bits fit into shared memory


def nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    valid: Tensor | None = None,
    max_keep: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes which boxes of each problem greedy suppression keeps, as torchvision.ops.nms does.

    A box goes if its IoU with a kept box of a higher score, or of an equal score and a smaller
    index, is above the threshold. Nothing waits for the GPU.

    Args:
        boxes: [P, N, 4] of P problems, (x1, y1, x2, y2), computed with in fp32.
        scores: [P, N].
        valid: [P, N], bool, False for boxes that are to be left out; None for all.
        max_keep: how many boxes of a problem to keep at most; N where it is None.

    Returns:
        indices: [P, max_keep], into N, by falling score; then zeros.
        counts: [P], int64, how many boxes each problem keeps.

    Raises:
        ValueError: for shapes that do not fit, and for a negative max_keep.
    """
    shapes = [None if x is None else tuple(x.shape) for x in (boxes, scores, valid)]
    if (
        boxes.dim() != 3
        or boxes.shape[2] != 4
        or any(s not in (None, shapes[0][:2]) for s in shapes[1:])
    ):
        raise ValueError(
            'nms: boxes must be [P, N, 4], scores [P, N] and valid [P, N] or None, got '
            '{}, {} and {}'.format(*shapes)
        )
    if max_keep is None:
        max_keep = boxes.shape[1]
    if max_keep < 0:
        raise ValueError(f'nms: max_keep must not be negative, got {max_keep}; None keeps all')
    order = scores.detach().argsort(dim=1, descending=True, stable=True)
    return torch.ops.kat_mm.nms.default(
        boxes.detach().float(), order, valid, iou_threshold, max_keep
    )


def nms_reference(
    boxes: Tensor, order: Tensor, valid: Tensor | None, iou_threshold: float, max_keep: int
) -> tuple[Tensor, Tensor]:
    """Computes the op in plain PyTorch, one problem after the other."""
    indices = order.new_zeros(len(order), max_keep)
    counts = []
    for i, ranked in enumerate(order):
        if valid is not None:
            ranked = ranked[valid[i, ranked]]
        kept = ranked[_keeps(boxes[i, ranked], iou_threshold, max_keep)][:max_keep]
        indices[i, : len(kept)] = kept
        counts.append(len(kept))
    return indices, torch.tensor(counts, dtype=torch.int64, device=boxes.device)


def _keeps(boxes: Tensor, iou_threshold: float, max_keep: int) -> Tensor:
    """Returns which of the boxes, by falling score, are kept; more than `max_keep` may be."""
    threshold = _float_below(iou_threshold)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = torch.ones_like(areas, dtype=torch.bool)
    total = 0
    for start in range(0, len(boxes), BLOCK):
        end = start + BLOCK
        rows = start + kept[start:end].nonzero()[:, 0]
        columns = start + kept[start:].nonzero()[:, 0]
        size = torch.minimum(boxes[rows, None, 2:], boxes[columns, 2:])
        size -= torch.maximum(boxes[rows, None, :2], boxes[columns, :2])
        shared = size.clamp_(min=0).prod(2)
        iou = shared / (areas[rows, None] + areas[columns] - shared)
        suppresses = (iou > threshold) & (rows[:, None] < columns)
        # Of a chain of boxes that each suppress the next, one more is right after each turn.
        inside = suppresses[:, : len(rows)]
        alive = torch.ones_like(rows, dtype=torch.bool)
        while not torch.equal(alive, now := ~(inside & alive[:, None]).any(0)):
            alive = now
        kept[columns] = ~(suppresses & alive[:, None]).any(0)
        total += int(alive.sum())
        if total >= max_keep:
            kept[end:] = False
            break
    return kept


def _float_below(value: float) -> float:
    """Returns the largest fp32 number that is at most `value`.

    An fp32 number is above one if and only if it is above the other: torchvision compares in fp64.
    """
    nearest = torch.tensor(value, dtype=torch.float32)
    if float(nearest) > value:
        nearest = torch.nextafter(nearest, torch.tensor(-math.inf))
    return float(nearest)


library.impl('nms', nms_reference, 'CompositeExplicitAutograd')


@torch.library.register_fake('kat_mm::nms', lib=library)
def _fake(boxes, order, valid, iou_threshold, max_keep):
    return order.new_empty(len(order), max_keep), order.new_empty(len(order))
