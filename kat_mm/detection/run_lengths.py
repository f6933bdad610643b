"""Masks as the lengths of their runs, which COCO's results are made of, found on the masks' device.

A hundred masks of 640 x 480 pixels are 31 MB; their runs are some hundred kilobytes.
"""

import numpy as np
import torch
from torch import Tensor


def run_lengths(masks: Tensor) -> list[np.ndarray]:
    """Returns the lengths of the runs of each mask, column by column, from a run of unset pixels.

    The first length is 0 where the first pixel is set. The host waits for the masks' device once
    for how many runs there are, and once for their lengths.

    Args:
        masks: [N, H, W], bool, or other numbers that are set where they are not 0.

    Returns:
        For each mask, the lengths in uint32; they add up to H * W.

    Raises:
        ValueError: for masks of another shape.
    """
    if masks.dim() != 3:
        raise ValueError(f'run_lengths: masks must be [N, H, W], got {tuple(masks.shape)}')
    count, height, width = masks.shape
    pixels = height * width
    if not count or not pixels:
        return [np.zeros(1, np.uint32) for _ in range(count)]
    columns = masks.bool().transpose(1, 2).reshape(count, pixels)
    # Where a pixel differs from the one before it; an unset one goes before the first.
    changes = torch.cat([columns[:, :1], columns[:, 1:] ^ columns[:, :-1]], 1)
    starts = changes.nonzero()
    numbers = torch.arange(1, count + 1, device=masks.device)
    ends = torch.searchsorted(starts[:, 0].contiguous(), numbers)
    values = torch.cat([ends, starts[:, 1]]).cpu().numpy()
    runs = np.split(values[count:], values[: count - 1])
    return [np.diff(run, prepend=0, append=pixels).astype(np.uint32) for run in runs]
