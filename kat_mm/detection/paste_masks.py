"""The torch op kat_mm::paste_masks: masks of boxes, in images of full size.

mmdet pastes by F.grid_sample, from a grid of two fp32 numbers for each pixel of each mask; here
nothing but the thresholded result is written.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..rational.op import library


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Resizes each mask bilinearly to its box in an image, 0 around it, and thresholds it.

    Args:
        masks: [N, h, w], probabilities, computed with in fp32.
        boxes: [N, 4] of x1, y1, x2, y2 in pixels of the image; pixel i has its centre at i + 0.5.
        size: height and width of the image.
        threshold: a pixel is set where the mask is at least this.

    Returns:
        [N, *size], bool.

    Raises:
        ValueError: for shapes that do not fit.
    """
    if masks.dim() != 3 or boxes.shape != (len(masks), 4):
        raise ValueError(
            'paste_masks: masks must be [N, h, w] and boxes [N, 4], got '
            f'{tuple(masks.shape)} and {tuple(boxes.shape)}'
        )
    masks, boxes = masks.detach().float(), boxes.detach().float()
    return torch.ops.kat_mm.paste_masks.default(masks, boxes, *size, threshold)


def paste_masks_reference(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float
) -> Tensor:
    """Computes the op in plain PyTorch, each mask where its box is."""
    output = masks.new_full((len(masks), height, width), threshold <= 0, dtype=torch.bool)
    for mask, box, result in zip(masks, boxes, output, strict=True):
        low, high = (box[:2].floor() - 1).clamp(min=0), box[2:].ceil() + 1
        x1, y1 = low.nan_to_num(0).int().tolist()
        x2, y2 = torch.minimum(high, high.new_tensor([width, height])).int().tolist()
        sides = []
        for first, last, axis in ((x1, x2, 0), (y1, y2, 1)):
            pixels = torch.arange(first, max(first, last), device=box.device) + 0.5
            place = (pixels - box[axis]) / (box[axis + 2] - box[axis]) * 2 - 1
            sides.append(place.masked_fill(place.isinf(), 0))
        grid = torch.stack(torch.meshgrid(*sides, indexing='xy'), -1)
        if grid.numel():
            pasted = F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]
            result[y1:y2, x1:x2] = pasted >= threshold
    return output


library.impl('paste_masks', paste_masks_reference, 'CompositeExplicitAutograd')


@torch.library.register_fake('kat_mm::paste_masks', lib=library)
def _fake(masks, boxes, height, width, threshold):
    return masks.new_empty(len(masks), height, width, dtype=torch.bool)
