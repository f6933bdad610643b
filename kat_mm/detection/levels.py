"""The torch ops with which a batch of pyramids becomes proposals: kat_mm::top_k, which chooses the
best anchors of each level, kat_mm::decode_boxes and, after suppression, kat_mm::merge_levels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..rational.op import library
from . import box_deltas
from .constants import constant

MOST = 4096  # scores of a level, which the kernel sorts in shared memory
MOST_MERGED = 47 * 1024 // 4  # of all levels, which it has there at the same time
MOST_LEVELS = 16


def top_k(scores: Tensor, sizes: Sequence[int], most: int) -> tuple[Tensor, Tensor]:
    """Chooses the best scores of each level; the first of equal ones.

    Levels of no more than `most` scores have them all, in their order.

    Args:
        scores: [B, N], those of all levels.
        sizes: how many scores each of the L levels has.
        most: how many to take of a level.

    Returns:
        The scores, falling, and their indices into N, [B, L, K]; K is `most`, or the largest size
        where that is less. Zeros behind what there is.
    """
    most = min(most, max(sizes))
    has_kernel = most <= MOST and len(sizes) <= MOST_LEVELS
    function = torch.ops.kat_mm.top_k.default if has_kernel else top_k_reference
    return function(scores, list(sizes), most)


def top_k_reference(scores: Tensor, sizes: list[int], most: int) -> tuple[Tensor, Tensor]:
    """Computes the op in plain PyTorch."""
    parts, start = [], 0
    for size in sizes:
        part = scores[:, start : start + size]
        if size > most:
            part, indices = part.sort(dim=1, descending=True)
            part, indices = part[:, :most], indices[:, :most] + start
        else:
            indices = torch.arange(start, start + size, device=scores.device).expand_as(part)
        start += size
        padding = 0, most - part.shape[1]
        parts.append((F.pad(part, padding), F.pad(indices, padding)))
    values, indices = (torch.stack(each, 1) for each in zip(*parts, strict=True))
    return values, indices


def decode_boxes(
    anchors: Tensor,
    deltas: Tensor,
    indices: Tensor,
    sizes: Sequence[int],
    limits: Tensor,
    factors: Tensor | None = None,
    means: Sequence[float] = box_deltas.MEANS,
    stds: Sequence[float] = box_deltas.STDS,
    min_size: float = -1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Decodes the deltas of chosen anchors, in fp32, and moves the levels apart.

    Args:
        anchors: [N, 4] in fp32, level by level.
        deltas: [B, N, 4], in any floating dtype.
        indices: [B, L, K], of the anchors of each level.
        sizes: how many anchors each level has; those behind them are not there.
        limits: [B, 4], the width and the height of each image, twice, to which boxes are clipped.
        factors: [B, 4], by which coordinates are multiplied; None for 1.
        means, stds: of the deltas; see `box_deltas`.
        min_size: what the width and the height must be above; any will do where it is negative.

    Returns:
        boxes: [B, L, K, 4].
        shifted: the boxes, moved by the largest valid coordinate of the image and 1 for each level
            before, as mmcv's batched_nms moves them.
        valid: [B, L, K], which are there and large enough.
    """
    if min_size < 0:
        min_size = -torch.inf
    arguments = limits, factors, list(means), list(stds), min_size
    has_kernel = deltas.dtype != torch.float64 and len(sizes) <= MOST_LEVELS
    function = torch.ops.kat_mm.decode_boxes.default if has_kernel else decode_boxes_reference
    return function(anchors, deltas, indices, list(sizes), *arguments)


def decode_boxes_reference(
    anchors: Tensor,
    deltas: Tensor,
    indices: Tensor,
    sizes: list[int],
    limits: Tensor,
    factors: Tensor | None,
    means: list[float],
    stds: list[float],
    min_size: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the op in plain PyTorch."""
    batch, levels, count = indices.shape
    starts = torch.arange(batch, device=indices.device) * len(anchors)
    places = (indices + starts[:, None, None]).flatten()
    deltas = deltas.flatten(0, 1).index_select(0, places).float().view(batch, levels, count, 4)
    boxes = box_deltas.decode(anchors[indices], deltas, means, stds, limits[:, None, None])
    if factors is not None:
        boxes = boxes * factors[:, None, None]
    is_there = torch.arange(count, device=indices.device) < constant(sizes, indices)[:, None]
    valid = is_there & (boxes[..., 2:] - boxes[..., :2] > min_size).all(-1)
    largest = boxes.amax(-1).masked_fill(~valid, -torch.inf).flatten(1).amax(1)
    largest = largest.masked_fill(largest.isinf(), 0)  # where nothing is valid
    shift = torch.arange(levels, device=indices.device) * (largest + 1)[:, None]
    return boxes, boxes + shift[..., None, None], valid


def merge_levels(
    boxes: Tensor, scores: Tensor, kept: Tensor, counts: Tensor, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Puts what suppression keeps of each level into one order of falling scores.

    Of equal scores, that of the lower level comes first.

    Args:
        boxes: [B, L, K, 4].
        scores: [B, L, K].
        kept: [B, L, M], indices into K by falling score.
        counts: [B, L], how many of M there are.
        limit: how many of an image to take.

    Returns:
        boxes [B, limit, 4], scores [B, limit] and counts [B]; zeros behind what there is.
    """
    limit = min(limit, kept.shape[1] * kept.shape[2])
    has_kernel = kept[0].numel() <= MOST_MERGED and kept.shape[1] <= MOST_LEVELS
    function = torch.ops.kat_mm.merge_levels.default if has_kernel else merge_levels_reference
    return function(boxes, scores, kept, counts, limit)


def merge_levels_reference(
    boxes: Tensor, scores: Tensor, kept: Tensor, counts: Tensor, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the op in plain PyTorch."""
    is_kept = torch.arange(kept.shape[2], device=kept.device) < counts[..., None]
    scores = scores.gather(2, kept).masked_fill(~is_kept, -torch.inf).flatten(1)
    boxes = boxes.gather(2, kept[..., None].expand(-1, -1, -1, 4)).flatten(1, 2)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :limit], order[:, :limit]
    counts = counts.sum(1).clamp(max=limit)
    is_kept = torch.arange(limit, device=kept.device) < counts[:, None]
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    return boxes * is_kept[..., None], scores.masked_fill(~is_kept, 0), counts


for _name, _function in (
    ('top_k', top_k_reference),
    ('decode_boxes', decode_boxes_reference),
    ('merge_levels', merge_levels_reference),
):
    library.impl(_name, _function, 'CompositeExplicitAutograd')


@torch.library.register_fake('kat_mm::top_k', lib=library)
def _top_k_fake(scores, sizes, most):
    shape = len(scores), len(sizes), most
    return scores.new_empty(shape), scores.new_empty(shape, dtype=torch.int64)


@torch.library.register_fake('kat_mm::decode_boxes', lib=library)
def _decode_boxes_fake(anchors, deltas, indices, *others):
    boxes = anchors.new_empty(*indices.shape, 4)
    return boxes, torch.empty_like(boxes), indices.new_empty(indices.shape, dtype=torch.bool)


@torch.library.register_fake('kat_mm::merge_levels', lib=library)
def _merge_levels_fake(boxes, scores, kept, counts, limit):
    batch = len(boxes)
    return boxes.new_empty(batch, limit, 4), scores.new_empty(batch, limit), counts.new_empty(batch)
