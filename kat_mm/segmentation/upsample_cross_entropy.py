"""The torch op kat_mm::upsample_cross_entropy: resizing, cross entropy and accuracy in one.

The logits of a decode head are smaller than the labels. Resized, 150 classes at 512 x 512 take 157
MB an image in fp32, several times over; the op computes each resized logit where it is needed.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..rational.op import library

CHUNK = 2**22  # resized logits at a time, where no kernel is compiled


class Statistics(NamedTuple):
    """Sums over the pixels that count, scalars in fp64.

    Attributes:
        weight: of the class weights of their labels.
        pixels: how many there are.
        correct: in how many the label has the largest logit.
    """

    weight: Tensor
    pixels: Tensor
    correct: Tensor


def upsample_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    align_corners: bool = False,
) -> tuple[Tensor, Statistics]:
    """Computes the sum of the cross entropies of bilinearly resized logits.

    It is F.cross_entropy(F.interpolate(logits, labels' size, mode='bilinear', align_corners=...),
    labels, class_weight, reduction='sum', ignore_index=...), computed in fp32 (fp64 for fp64), with
    the same bits in each run. It can be differentiated once, in the logits.

    Args:
        logits: [B, C, h, w], in any floating dtype.
        labels: [B, H, W], int64 from 0 to C - 1, or ignore_index.
        class_weight: [C], none negative.
        ignore_index: the label of pixels that do not count.
        align_corners: as of F.interpolate.

    Returns:
        The sum, a scalar in fp32 (fp64 for fp64), and what it is divided by for a mean.

    Raises:
        ValueError: for shapes that do not fit.
        TypeError: for labels that are not int64.
    """
    _check(logits, labels, class_weight)
    if class_weight is not None:
        class_weight = class_weight.detach().to(logits.device, _compute_dtype(logits))
    loss, statistics, _ = torch.ops.kat_mm.upsample_cross_entropy.default(
        logits, labels, class_weight, ignore_index, align_corners
    )
    return loss, Statistics(*statistics.unbind())


def _check(logits: Tensor, labels: Tensor, class_weight: Tensor | None) -> None:
    shapes = f'logits {tuple(logits.shape)} and labels {tuple(labels.shape)}'
    if logits.dim() != 4 or labels.dim() != 3 or logits.shape[0] != labels.shape[0]:
        raise ValueError(
            'upsample_cross_entropy: logits must be [B, C, h, w] and labels [B, H, W], got '
            f'{shapes}'
        )
    if labels.dtype != torch.int64:
        raise TypeError(f'upsample_cross_entropy: labels must be int64, got {labels.dtype}')
    if class_weight is not None and class_weight.shape != logits.shape[1:2]:
        raise ValueError(
            f'upsample_cross_entropy: class_weight {tuple(class_weight.shape)} must have one '
            f'number for each of the classes of {shapes}'
        )


def _compute_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _chunks(logits: Tensor, labels: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Splits a batch into as many images at a time as fit into `CHUNK` resized logits."""
    images = max(CHUNK // max(logits.shape[1] * labels[0].numel(), 1), 1) if len(labels) else 1
    return zip(*(tensor.split(images) for tensor in (logits, labels, *others)), strict=True)


def _resized(logits: Tensor, labels: Tensor, align_corners: bool) -> Tensor:
    """Resizes logits to the labels' size, in the dtype to compute in."""
    wide = logits.to(_compute_dtype(logits))
    return F.interpolate(wide, labels.shape[-2:], mode='bilinear', align_corners=align_corners)


def _pixels(
    labels: Tensor, class_weight: Tensor | None, ignore_index: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns which pixels count, labels that are classes everywhere, and the pixels' weights."""
    counts = labels != ignore_index
    labels = labels.where(counts, 0)
    weight = counts.to(dtype)
    return counts, labels, weight if class_weight is None else weight * class_weight[labels]


def upsample_cross_entropy_reference(
    logits: Tensor,
    labels: Tensor,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    align_corners: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the op in plain PyTorch, some images at a time.

    Returns:
        The sum; the three sums of `Statistics`; and the logarithm of each pixel's partition
        function, which backward needs, less that of its class weight: infinite where ignored.
    """
    dtype = _compute_dtype(logits)
    partition = logits.new_empty(labels.shape, dtype=dtype)
    sums = logits.new_zeros(4, dtype=torch.float64)
    for part, label, shifted in _chunks(logits, labels, partition):
        resized = _resized(part, label, align_corners)
        counts, label, weight = _pixels(label, class_weight, ignore_index, dtype)
        largest, best = resized.max(1)
        of_label = resized.gather(1, label[:, None])[:, 0]
        torch.add(resized.sub_(largest[:, None]).exp_().sum(1).log_(), largest, out=shifted)
        correct = (best == label) & counts
        terms = (weight * (shifted - of_label), weight, counts, correct)
        sums += torch.stack([term.sum(dtype=torch.float64) for term in terms])
        shifted.sub_(weight.log())
    return sums[0].to(dtype), sums[1:].clone(), partition


def upsample_cross_entropy_backward_reference(
    grad: Tensor,
    logits: Tensor,
    labels: Tensor,
    partition: Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    align_corners: bool,
) -> Tensor:
    """Computes the gradient of the logits in plain PyTorch, some images at a time."""
    grad_logits = torch.empty_like(logits)
    for part, label, shifted, result in _chunks(logits, labels, partition, grad_logits):
        grads = _resized(part, label, align_corners).sub_(shifted[:, None]).exp_()
        _, label, weight = _pixels(label, class_weight, ignore_index, grads.dtype)
        grads.scatter_add_(1, label[:, None], -weight[:, None])
        result.copy_(
            torch.ops.aten.upsample_bilinear2d_backward(
                grads.mul_(grad), label.shape[-2:], part.shape, align_corners
            )
        )
    return grad_logits


for _name, _function in (
    ('upsample_cross_entropy', upsample_cross_entropy_reference),
    ('upsample_cross_entropy_backward', upsample_cross_entropy_backward_reference),
):
    library.impl(_name, _function, 'CompositeExplicitAutograd')


@torch.library.register_fake('kat_mm::upsample_cross_entropy', lib=library)
def _fake(logits, labels, class_weight=None, ignore_index=-100, align_corners=False):
    dtype = _compute_dtype(logits)
    return (
        logits.new_empty((), dtype=dtype),
        logits.new_empty(3, dtype=torch.float64),
        logits.new_empty(labels.shape, dtype=dtype),
    )


@torch.library.register_fake('kat_mm::upsample_cross_entropy_backward', lib=library)
def _backward_fake(grad, logits, *others):
    return torch.empty_like(logits)


def _setup_context(ctx, inputs, output):
    logits, labels, class_weight, ctx.ignore_index, ctx.align_corners = inputs
    ctx.save_for_backward(logits, labels, output[2], class_weight)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx, grad, *_):
    logits, labels, partition, class_weight = ctx.saved_tensors
    grad_logits = torch.ops.kat_mm.upsample_cross_entropy_backward.default(
        grad, logits, labels, partition, class_weight, ctx.ignore_index, ctx.align_corners
    )
    return grad_logits, None, None, None, None


torch.library.register_autograd(
    'kat_mm::upsample_cross_entropy', _backward, setup_context=_setup_context, lib=library
)
