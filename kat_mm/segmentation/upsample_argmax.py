"""The torch op kat_mm::upsample_argmax: the classes of resized logits, without these.

Resized logits of 150 classes at 512 x 683 take 210 MB an image, the labels for which they are, 3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..rational.op import library

CHUNK = 2**24  # resized logits at a time, where no kernel is compiled


def upsample_argmax(
    logits: Tensor,
    size: tuple[int, int],
    align_corners: bool = False,
    via: tuple[int, int] | None = None,
    window: tuple[int, int, int, int] | None = None,
) -> Tensor:
    """Computes in which class bilinearly resized logits are the largest.

    It is F.interpolate(logits, size, mode='bilinear', align_corners=...).argmax(1), or with `via`
    the same of logits that were first resized to that size and cut to `window`: each of the two
    resizings is computed as it is written, in fp32 (fp64 for fp64), and not one that comes near.
    Labels may differ where two classes are equal up to rounding, and where logits of 16 bits would
    be rounded after each resizing. Nothing can be differentiated.

    Args:
        logits: [B, C, h, w], in any floating dtype.
        size: (height, width) of the labels.
        align_corners: as of F.interpolate, for both resizings.
        via: (height, width) that the logits are resized to first.
        window: (top, left, height, width) of what of it counts; all of it by default.

    Returns:
        Labels [B, height, width] in int64; of equal classes, the first.

    Raises:
        ValueError: for logits that are not [B, C, h, w], and for a window that does not fit.
    """
    if logits.dim() != 4 or 0 in logits.shape:
        raise ValueError(f'upsample_argmax: logits must be [B, C, h, w], got {tuple(logits.shape)}')
    via = tuple(via or logits.shape[2:])
    top, left, height, width = window or (0, 0, *via)
    is_inside = top + height <= via[0] and left + width <= via[1]
    if not is_inside or min(top, left) < 0 or min(height, width, *size) < 1:
        raise ValueError(
            f'upsample_argmax: the window {window} must lie within {via}, and sizes be above 0'
        )
    return torch.ops.kat_mm.upsample_argmax.default(
        logits.detach(), *via, top, left, height, width, *size, align_corners
    )


def upsample_argmax_reference(
    logits: Tensor,
    via_height: int,
    via_width: int,
    top: int,
    left: int,
    window_height: int,
    window_width: int,
    height: int,
    width: int,
    align_corners: bool = False,
) -> Tensor:
    """Computes the op in plain PyTorch, some classes at a time."""
    via, size = (via_height, via_width), (height, width)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    most = max(via_height * via_width, height * width) * logits.shape[0]
    best = labels = None
    for first, part in _parts(logits, max(CHUNK // most, 1)):
        part = _resize(part, via, align_corners)
        part = part[:, :, top : top + window_height, left : left + window_width]
        values, classes = _resize(part, size, align_corners).max(1)
        classes += first
        if best is None:
            best, labels = values, classes
        else:
            # As argmax has it, which takes NaN for the largest.
            wins = (values > best) | (values.isnan() & ~best.isnan())
            best, labels = values.where(wins, best), classes.where(wins, labels)
    return labels


def _parts(logits: Tensor, classes: int):
    for first in range(0, logits.shape[1], classes):
        yield first, logits[:, first : first + classes]


def _resize(x: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    if x.shape[2:] == size:  # which would copy it
        return x
    return F.interpolate(x, size, mode='bilinear', align_corners=align_corners)


library.impl('upsample_argmax', upsample_argmax_reference, 'CompositeExplicitAutograd')


@torch.library.register_fake('kat_mm::upsample_argmax', lib=library)
def _fake(logits, via_height, via_width, top, left, window_height, window_width, height, width, *_):
    return logits.new_empty(logits.shape[0], height, width, dtype=torch.int64)
