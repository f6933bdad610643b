"""The proposals of mmdet's RPNHead, which are mmcv's batched_nms's, for a whole batch at once."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..detection import box_deltas, nms
from .anchor_grid import Grid
from .proposals import Proposals


def propose(
    scores: Tensor,
    deltas: Tensor,
    grid: Grid,
    coder,
    cfg,
    limits: Tensor,
    factors: Tensor | None = None,
) -> Proposals:
    """Computes the proposals of a batch.

    Args:
        scores: [B, N], probabilities.
        deltas: [B, N, 4], in any floating dtype.
        coder: a DeltaXYWHBBoxCoder.
        cfg: `nms_pre`, `min_bbox_size`, `nms` and `max_per_img`.
        limits: [B, 4], the width and the height of each image, twice.
        factors: [B, 4], by which the coordinates are multiplied; None for 1.
    """
    scores, indices, is_there = _best_of_levels(scores, grid.counts, cfg.get('nms_pre', -1))
    batch, levels, count = scores.shape
    first = torch.arange(0, deltas.shape[1] * batch, deltas.shape[1], device=scores.device)
    places = (indices + first[:, None, None]).flatten()
    deltas = deltas.flatten(0, 1).index_select(0, places).float().view(batch, levels, count, 4)
    boxes = box_deltas.decode(
        grid.anchors[indices], deltas, coder.means, coder.stds, limits[:, None, None]
    )
    if factors is not None:
        boxes = boxes * factors[:, None, None]
    valid = is_there.expand_as(scores)
    if cfg.get('min_bbox_size', -1) >= 0:
        size = boxes[..., 2:] - boxes[..., :2]
        valid = valid & (size > cfg.min_bbox_size).all(-1)

    # mmcv moves the levels apart and suppresses all at once: the same boxes, rounded alike.
    largest = boxes.amax(-1).where(valid, -torch.inf).amax((1, 2))
    shift = torch.arange(levels, device=scores.device) * (largest + 1)[:, None]
    limit = cfg.max_per_img
    if cfg.nms.get('max_num', -1) > 0:
        limit = min(limit, cfg.nms['max_num'])
    kept, counts = nms(
        (boxes + shift[..., None, None]).flatten(0, 1),
        scores.flatten(0, 1),
        cfg.nms['iou_threshold'],
        valid.flatten(0, 1),
        min(limit, count),
    )
    return _merge(boxes, scores, kept.view(batch, levels, -1), counts.view(batch, levels), limit)


def _best_of_levels(
    scores: Tensor, counts: tuple[int, ...], most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the best scores of each level, their indices, [B, L, K], and which are there [L, K].

    Levels of no more than `most` anchors have them all, in their order.
    """
    parts, start = [], 0
    sizes = [min(most, count) if most > 0 else count for count in counts]
    for count, size in zip(counts, sizes, strict=True):
        part = scores[:, start : start + count]
        if size < count:
            part, indices = part.sort(dim=1, descending=True)
            part, indices = part[:, :size], indices[:, :size] + start
        else:
            indices = torch.arange(start, start + count, device=scores.device).expand_as(part)
        start += count
        padding = 0, max(sizes) - size
        parts.append((F.pad(part, padding), F.pad(indices, padding)))
    scores, indices = (torch.stack(each, 1) for each in zip(*parts, strict=True))
    numbers = torch.arange(max(sizes), device=scores.device)
    is_there = numbers < box_deltas.constant(sizes, scores)[:, None]
    return scores, indices, is_there


def _merge(boxes: Tensor, scores: Tensor, kept: Tensor, counts: Tensor, limit: int) -> Proposals:
    """Puts what the levels keep into the order of scores; the lower level first where they tie."""
    is_kept = torch.arange(kept.shape[2], device=kept.device) < counts[..., None]
    scores = scores.gather(2, kept).where(is_kept, -torch.inf).flatten(1)
    boxes = boxes.gather(2, kept[..., None].expand(-1, -1, -1, 4)).flatten(1, 2)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :limit], order[:, :limit]
    counts = counts.sum(1).clamp(max=limit)
    is_kept = torch.arange(order.shape[1], device=kept.device) < counts[:, None]
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    return Proposals(boxes.where(is_kept[..., None], 0), scores.where(is_kept, 0), counts)
