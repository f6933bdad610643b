"""Boxes as deltas from others."""

import math

import torch
from torch import Tensor


def encode(boxes: Tensor, gt_boxes: Tensor, means, stds) -> Tensor:
    """Computes deltas [..., 4]."""
    boxes, gt_boxes = boxes.float(), gt_boxes.float()
    centre, gt_centre = ((x[..., :2] + x[..., 2:]) * 0.5 for x in (boxes, gt_boxes))
    size, gt_size = (x[..., 2:] - x[..., :2] for x in (boxes, gt_boxes))
    deltas = torch.cat([(gt_centre - centre) / size, torch.log(gt_size / size)], -1)
    return torch.stack([(deltas[..., i] - means[i]) / stds[i] for i in range(4)], -1)


def decode(boxes: Tensor, deltas: Tensor, means, stds, limits: Tensor | None = None) -> Tensor:
    """Computes boxes [..., 4]."""
    deltas = torch.stack([deltas[..., i] * stds[i] + means[i] for i in range(4)], -1)
    centre, size = (boxes[..., :2] + boxes[..., 2:]) * 0.5, boxes[..., 2:] - boxes[..., :2]
    bound = abs(math.log(16 / 1000))
    centre = centre + size * deltas[..., :2]
    size = size * deltas[..., 2:].clamp(-bound, bound).exp()
    result = torch.cat([centre - size * 0.5, centre + size * 0.5], -1)
    return result if limits is None else torch.minimum(result.clamp(min=0), limits)
