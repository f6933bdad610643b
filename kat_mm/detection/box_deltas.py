"""Boxes as deltas from other boxes, as mmdet's DeltaXYWHBBoxCoder writes them, for any batch.

Deltas are the shift of the centre, in units of the size of the box it is from, and the logarithm of
the ratio of sizes; less `means`, divided by `stds`. Source: R-CNN, arXiv 1311.2524, appendix C.
"""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

MEANS, STDS = (0.0,) * 4, (1.0,) * 4
MAX_LOG_RATIO = abs(math.log(16 / 1000))  # of sizes, which exp would make infinite


def encode(
    boxes: Tensor,
    gt_boxes: Tensor,
    means: Sequence[float] = MEANS,
    stds: Sequence[float] = STDS,
) -> Tensor:
    """Computes the deltas [..., 4] that lead from boxes to ground truth, (x1, y1, x2, y2), in fp32.

    Boxes without width or height have infinite deltas, or none.
    """
    (center, size), (gt_center, gt_size) = (
        ((x[..., :2] + x[..., 2:]) * 0.5, x[..., 2:] - x[..., :2])
        for x in (boxes.float(), gt_boxes.float())
    )
    deltas = torch.cat([(gt_center - center) / size, torch.log(gt_size / size)], -1)
    if any(means):
        deltas = deltas - constant(means, deltas)
    return deltas / constant(stds, deltas) if tuple(stds) != STDS else deltas


def decode(
    boxes: Tensor,
    deltas: Tensor,
    means: Sequence[float] = MEANS,
    stds: Sequence[float] = STDS,
    limits: Tensor | None = None,
) -> Tensor:
    """Computes the boxes [..., 4] to which deltas lead from others.

    Args:
        limits: the largest coordinates, (width, height, width, height), to which all are clipped,
            and to 0; [..., 4] or what broadcasts to it. None leaves them as they are.
    """
    if tuple(stds) != STDS:
        deltas = deltas * constant(stds, deltas)
    if any(means):
        deltas = deltas + constant(means, deltas)
    center = (boxes[..., :2] + boxes[..., 2:]) * 0.5
    size = boxes[..., 2:] - boxes[..., :2]
    center = center + size * deltas[..., :2]
    half = size * deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * 0.5
    result = torch.cat([center - half, center + half], -1)
    return result if limits is None else torch.minimum(result.clamp(min=0), limits)


def constant(values: Sequence[float], like: Tensor) -> Tensor:
    """Returns numbers as a tensor on the device of another, to which they are copied only once."""
    return _constant(tuple(values), like.dtype, like.device)


@functools.lru_cache(maxsize=64)
def _constant(values: tuple, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # of which a tensor could not take part in training
        return torch.tensor(values, dtype=dtype, device=device)
