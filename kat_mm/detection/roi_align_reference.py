"""RoIAlign of a pyramid in plain PyTorch, by torchvision's ops where they are installed.

A point that is sampled is a pair of places along y and x, so the weights that a bin gives to the
pixels of a map are the products of two rows of numbers: the formula is two matrix products.
"""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

CHUNK = 2**24  # elements of intermediate results at a time


def multilevel_roi_align_reference(
    maps: list[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    finest_scale: float,
    output_size: Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    channels_last: bool,
) -> Tensor:
    """Computes kat_mm::multilevel_roi_align level by level."""
    features = maps[0].new_zeros(len(rois), maps[0].shape[1], *output_size)
    for i, chosen in enumerate(_of_levels(rois, levels, finest_scale, len(maps), len(maps[0]))):
        if len(chosen):
            wide = maps[i].to(_compute_dtype(maps[i]))
            chosen = _with_samples(chosen, rois, sampling_ratio, aligned)
            pooled = _pool(wide, rois[chosen], scales[i], output_size, sampling_ratio, aligned)
            features[chosen] = pooled.to(features.dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return features.contiguous(memory_format=layout)


def multilevel_roi_align_backward_reference(
    grad: Tensor,
    rois: Tensor,
    levels: Tensor | None,
    sizes: Sequence[int],
    finest_scale: float,
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> list[Tensor]:
    """Computes kat_mm::multilevel_roi_align_backward level by level."""
    batch, channels, *sides = sizes
    grads = []
    chosen_of_level = _of_levels(rois, levels, finest_scale, len(scales), batch)
    for i, chosen in enumerate(chosen_of_level):
        height, width, is_last = sides[3 * i : 3 * i + 3]
        chosen = _with_samples(chosen, rois, sampling_ratio, aligned)
        wide = grad[chosen].to(_compute_dtype(grad)).contiguous()
        shape = (batch, channels, height, width)
        grad_map = _spread(wide, rois[chosen], scales[i], shape, sampling_ratio, aligned)
        layout = torch.channels_last if is_last else torch.contiguous_format
        grads.append(grad_map.to(grad.dtype).contiguous(memory_format=layout))
    return grads


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _of_levels(
    rois: Tensor, levels: Tensor | None, finest_scale: float, count: int, batch: int
) -> Iterator[Tensor]:
    """Returns the indices of the RoIs of each level, without padding."""
    if levels is None:
        levels = map_levels(rois, finest_scale, count)
    counts = (rois[:, 0] >= 0) & (rois[:, 0] < batch)
    return ((counts & (levels == i)).nonzero().squeeze(1) for i in range(count))


def _with_samples(chosen: Tensor, rois: Tensor, sampling_ratio: int, aligned: bool) -> Tensor:
    """Leaves out RoIs that have no samples, for which torchvision's CPU kernel raises."""
    if sampling_ratio > 0 or not aligned:
        return chosen
    sides = rois[chosen, 3:] - rois[chosen, 1:3]
    return chosen[(sides > 0).all(1)]


def map_levels(rois: Tensor, finest_scale: float, count: int) -> Tensor:
    """Returns the level of each RoI [K, 5] as FPN does, by its size; -1 for a negative area."""
    scale = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
    levels = (scale / finest_scale + 1e-6).log2().floor().clamp(0, count - 1)
    return levels.nan_to_num(-1).long()


def _pool(feature, rois, scale, size, sampling_ratio, aligned) -> Tensor:
    if find_spec('torchvision'):
        import torchvision  # noqa: F401, whose ops it registers

        return torch.ops.torchvision.roi_align(
            feature, rois.to(feature.dtype), scale, *size, sampling_ratio, aligned
        )
    return roi_align_formula(feature, rois, scale, size, sampling_ratio, aligned)


def _spread(grad, rois, scale, shape, sampling_ratio, aligned) -> Tensor:
    if not len(rois):
        return grad.new_zeros(shape)
    if find_spec('torchvision'):
        import torchvision  # noqa: F401

        return torch.ops.torchvision._roi_align_backward(
            grad, rois.to(grad.dtype), scale, *grad.shape[2:], *shape, sampling_ratio, aligned
        )
    return roi_align_backward_formula(grad, rois, scale, shape, sampling_ratio, aligned)


def roi_align_formula(
    feature: Tensor, rois: Tensor, scale: float, size, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Pools RoIs [K, 5] from one map [B, C, H, W] by two matrix products each."""
    y, x = _weights(rois, feature.shape[2:], scale, size, sampling_ratio, aligned)
    pooled = feature.new_empty(len(rois), feature.shape[1], *size)
    for part in _parts(rois, feature.shape):
        lines = torch.einsum('kph,kchw->kcpw', y[part], feature[rois[part, 0].long()])
        pooled[part] = torch.einsum('kqw,kcpw->kcpq', x[part], lines)
    return pooled


def roi_align_backward_formula(
    grad: Tensor, rois: Tensor, scale: float, shape, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Computes the gradient of the map in `roi_align_formula`."""
    y, x = _weights(rois, shape[2:], scale, grad.shape[2:], sampling_ratio, aligned)
    total = grad.new_zeros(shape)
    for part in _parts(rois, shape):
        lines = torch.einsum('kqw,kcpq->kcpw', x[part], grad[part])
        spread = torch.einsum('kph,kcpw->kchw', y[part], lines)
        total.index_add_(0, rois[part, 0].long(), spread)
    return total


def _parts(rois: Tensor, shape: Sequence[int]) -> Iterator[slice]:
    step = max(CHUNK // (shape[1] * shape[2] * shape[3]), 1)
    return (slice(start, start + step) for start in range(0, len(rois), step))


def _weights(rois, sides, scale, size, sampling_ratio, aligned) -> tuple[Tensor, Tensor]:
    """Returns what each row [K, h, H] and each column [K, w, W] of a map weighs in each bin."""
    rois = rois.to(torch.get_default_dtype() if rois.dtype == torch.float16 else rois.dtype)
    weights, counts = [], []
    for low, high, side, bins in ((2, 4, sides[0], size[0]), (1, 3, sides[1], size[1])):
        offset = 0.5 if aligned else 0.0
        start = rois[:, low] * scale - offset
        length = rois[:, high] * scale - offset - start
        length = length if aligned else length.clamp(min=1)
        width = (length / bins)[:, None, None]
        count = (
            torch.full_like(length, sampling_ratio) if sampling_ratio > 0 else width[:, 0, 0].ceil()
        )
        samples = torch.arange(max(int(count.max()), 1), device=rois.device, dtype=rois.dtype)
        of_bin = torch.arange(bins, device=rois.device, dtype=rois.dtype)[:, None]
        per_bin = count.clamp(min=1)[:, None, None]
        place = start[:, None, None] + of_bin * width + (samples + 0.5) * width / per_bin
        inside = (samples < count[:, None, None]) & (place >= -1) & (place <= side)
        place = place.clamp(0, side - 1)
        pixels = torch.arange(side, device=rois.device, dtype=rois.dtype)
        near = (1 - (place[..., None] - pixels).abs()).clamp(min=0)
        weights.append((near * inside[..., None]).sum(-2))
        counts.append(count)
    points = (counts[0] * counts[1]).clamp(min=1)[:, None, None]
    return weights[0] / points, weights[1]
