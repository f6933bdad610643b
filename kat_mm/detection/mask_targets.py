"""The masks of instances, cropped to boxes and resized: what a mask head is trained to predict."""

import torch
from torch import Tensor

from ..rational.op import library
from .masks import PackedBitmaps, PackedMasks, PackedPolygons

CHUNK = 2**20  # samples at a time, where no kernel is compiled
SCALE = 5  # of the grid on which polygons are drawn


def mask_targets(
    masks: PackedMasks,
    boxes: Tensor,
    images: Tensor,
    instances: Tensor,
    size: tuple[int, int],
    binarize: bool = True,
) -> Tensor:
    """Crops masks to boxes and resizes them, all in one call and without waiting for the GPU.

    The results are those of mmdet's `mask_target`. Bitmaps are averaged over each bin, as RoIAlign
    does with `aligned` and as many samples as the bin has pixels, and the mask is where the average
    is at least 0.5. Polygons are scaled and then drawn as pycocotools draws them, on a grid five
    times finer.

    Args:
        masks: of all instances of the batch.
        boxes: [K, 4] of x1, y1, x2, y2 in pixels, which are clipped to their images.
        images: [K] int64, the image of each box.
        instances: [K] int64, the instance in that image; below 0 for a box without one, whose mask
            is empty.
        size: height and width of the result.
        binarize: False for the averages themselves, of bitmaps alone.

    Returns:
        fp32 [K, *size], of 0 and 1.

    Raises:
        ValueError: for shapes that do not fit, and for polygons without binarize.
    """
    _check(masks, boxes, images, instances, binarize)
    rows = masks.starts, masks.table
    chosen = boxes.detach().float(), images, instances
    if isinstance(masks, PackedBitmaps):
        return torch.ops.kat_mm.bitmap_targets.default(*rows, masks.words, *chosen, *size, binarize)
    return torch.ops.kat_mm.polygon_targets.default(
        *rows, masks.polygon_table, masks.vertices, *chosen, *size
    )


def _check(
    masks: PackedMasks, boxes: Tensor, images: Tensor, instances: Tensor, binarize: bool
) -> None:
    count = len(boxes)
    if boxes.shape != (count, 4) or images.shape != (count,) or instances.shape != (count,):
        raise ValueError(
            'mask_targets: boxes must be [K, 4], images and instances [K], got '
            f'{tuple(boxes.shape)}, {tuple(images.shape)} and {tuple(instances.shape)}'
        )
    if isinstance(masks, PackedPolygons) and not binarize:
        raise ValueError('mask_targets: polygons have no averages; leave binarize at True')


def _clipped(
    starts: Tensor, table: Tensor, boxes: Tensor, images: Tensor, instances: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the row of each box's instance, and the box clipped to the image."""
    rows = table[starts[images] + instances]
    x1, y1, x2, y2 = boxes.unbind(1)
    height, width = rows[:, -2].float(), rows[:, -1].float()
    x1, x2 = (x.clamp(min=0).minimum(width) for x in (x1, x2))
    y1, y2 = (y.clamp(min=0).minimum(height) for y in (y1, y2))
    return rows, torch.stack([x1, y1, x2, y2], 1)


def _chosen(boxes: Tensor, images: Tensor, instances: Tensor) -> tuple[Tensor, ...]:
    """Returns which boxes have an instance, and these boxes, images and instances."""
    has_one = (instances >= 0).nonzero()[:, 0]
    return has_one, boxes[has_one], images[has_one], instances[has_one]


# --- bitmaps -------------------------------------------------------------------------------------


def bitmap_targets_reference(
    starts: Tensor,
    table: Tensor,
    words: Tensor,
    boxes: Tensor,
    images: Tensor,
    instances: Tensor,
    height: int,
    width: int,
    binarize: bool = True,
) -> Tensor:
    """Computes the targets in plain PyTorch, boxes of one number of samples at a time."""
    targets = boxes.new_zeros(len(boxes), height, width)
    if not words.numel():
        return targets
    which, *chosen = _chosen(boxes, images, instances)
    rows, boxes = _clipped(starts, table, *chosen)
    begin = boxes[:, :2] - 0.5
    extent = (boxes[:, 2:] - 0.5) - begin
    bins = extent / extent.new_tensor([width, height])
    grids, group = bins.ceil().long().clamp(min=0).unique(dim=0, return_inverse=True)
    octets = words.view(torch.uint8)
    for number, (columns, lines) in enumerate(grids.tolist()):
        members = (group == number).nonzero()[:, 0]
        if not columns * lines:
            continue
        for part in members.split(max(CHUNK // (columns * lines * height * width), 1)):
            y = _samples(begin[part, 1], bins[part, 1], height, lines)
            x = _samples(begin[part, 0], bins[part, 0], width, columns)
            targets[which[part]] = _averages(octets, rows[part], y, x)
    return (targets >= 0.5).float() if binarize else targets


def _samples(begin: Tensor, bin_size: Tensor, bins: int, samples: int) -> Tensor:
    """Returns the places of the samples along one side, [boxes, bins, samples]."""
    bin_size = bin_size[:, None, None]
    place = torch.arange(bins, device=begin.device).float()[:, None] * bin_size
    inner = (torch.arange(samples, device=begin.device).float() + 0.5) * bin_size
    return (begin[:, None, None] + place) + inner / begin.new_tensor(samples)


def _averages(octets: Tensor, rows: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Averages the samples in each bin, added line by line as RoIAlign adds them."""
    left, top, width, height, first, *size = rows[:, :, None, None, None, None].unbind(1)
    y, x = y[:, :, :, None, None], x[:, None, None]

    def neighbours(place, side):
        inside = ~((place < -1) | (place > side))
        place = place.clamp(min=0)
        low = place.long()
        is_last = low >= side - 1
        low = torch.where(is_last, side - 1, low)
        weight = torch.where(is_last, 0, place - low)
        return inside, (low, torch.where(is_last, low, low + 1)), (1 - weight, weight)

    in_y, lines, y_weights = neighbours(y, size[0])
    in_x, columns, x_weights = neighbours(x, size[1])
    value = None
    for line, y_weight in zip(lines, y_weights, strict=True):
        for column, x_weight in zip(columns, x_weights, strict=True):
            row, place = line - top, column - left
            in_box = (row >= 0) & (row < height) & (place >= 0) & (place < width)
            bit = torch.where(in_box, row * width + place, 0)
            octet = torch.where(in_box, first * 8 + (bit >> 3), 0)
            pixel = (octets[octet] >> (bit & 7).byte()) & in_box
            term = y_weight * x_weight * pixel
            value = term if value is None else value + term
    value = torch.where(in_y & in_x, value, 0)
    samples = value.transpose(2, 3).flatten(3).unbind(3)
    total = torch.zeros_like(samples[0])
    for sample in samples:
        total = total + sample
    return total / total.new_tensor(len(samples))


# --- polygons ------------------------------------------------------------------------------------


def polygon_targets_reference(
    starts: Tensor,
    table: Tensor,
    polygons: Tensor,
    vertices: Tensor,
    boxes: Tensor,
    images: Tensor,
    instances: Tensor,
    height: int,
    width: int,
) -> Tensor:
    """Computes the targets in plain PyTorch.

    pycocotools walks along the edges on the fine grid, x = 0, 1, ..., and notes where it steps
    between the columns 5 c + 2 and 5 c + 3: there column c of the mask changes between outside and
    inside, from a row on. Here each edge is asked for its step in each column.
    """
    targets = boxes.new_zeros(len(boxes), height, width)
    which, *chosen = _chosen(boxes, images, instances)
    rows, boxes = _clipped(starts, table, *chosen)
    box, polygon = _spans(rows[:, 0], rows[:, 1])
    outline, vertex = _spans(*polygons[polygon].unbind(1))
    first, count = polygons[polygon][outline].unbind(1)
    following = torch.where(vertex + 1 < first + count, vertex + 1, first)
    begin, extent = boxes[:, :2], (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    scale = (extent.new_tensor([width, height]) / extent).double()[box[outline]]
    begin = begin.double()[box[outline]]
    ends = [((vertices[v] - begin) * scale * SCALE + 0.5).trunc() for v in (vertex, following)]
    steps, row = _steps(*ends, height, width)
    toggles = boxes.new_zeros(len(polygon), width, height + 1)
    edge, column = steps.nonzero(as_tuple=True)
    place = (outline[edge], column, row[edge, column])
    toggles.index_put_(place, toggles.new_ones(()), accumulate=True)
    inside = toggles[:, :, :height].cumsum(2) % 2
    union = boxes.new_zeros(len(boxes), width, height).index_add_(0, box, inside)
    targets[which] = (union > 0).float().mT
    return targets


def _spans(firsts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Returns, for all numbers of spans first, first + 1, ..., the span and the number."""
    span = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    before = counts.cumsum(0) - counts
    number = torch.arange(len(span), device=counts.device) - before[span]
    return span, firsts[span] + number


def _steps(start: Tensor, end: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Returns which edges change which columns, [edges, width], and from which row on."""
    dx, dy = (end - start).abs().unbind(1)
    is_wide = dx >= dy
    backwards = torch.where(is_wide, start[:, 0] > end[:, 0], start[:, 1] > end[:, 1])[:, None]
    start, end = torch.where(backwards, end, start), torch.where(backwards, start, end)
    xs, ys, xe, ye = (side[:, None] for side in (*start.unbind(1), *end.unbind(1)))
    dx, dy, is_wide = dx[:, None], dy[:, None], is_wide[:, None]
    column = SCALE * torch.arange(width, device=start.device).double() + (SCALE // 2)
    low, high = torch.minimum(xs, xe), torch.maximum(xs, xe)
    steps = (low <= column) & (column + 1 <= high)

    slope = (ye - ys) / dx.clamp(min=1)
    step = column - xs
    wide_row = torch.minimum(*((ys + slope * t + 0.5).trunc() for t in (step, step + 1)))

    slope = (xe - xs) / dy.clamp(min=1)
    has_passed = lambda t: ((xs + slope * t + 0.5).trunc() > column) == (slope > 0)  # noqa: E731
    step = ((column + 0.5 - xs) / slope).ceil()
    step = step.where(steps, 0)
    step = torch.where(has_passed(step - 1), step - 1, step)
    step = torch.where(has_passed(step), step, step + 1)
    row = torch.where(is_wide, wide_row, ys + step - 1)
    row = torch.where(steps, row, 0).clamp(min=0)
    return steps, ((row.long() + SCALE // 2) // SCALE).clamp(max=height)


library.impl('bitmap_targets', bitmap_targets_reference, 'CompositeExplicitAutograd')
library.impl('polygon_targets', polygon_targets_reference, 'CompositeExplicitAutograd')


@torch.library.register_fake('kat_mm::bitmap_targets', lib=library)
def _fake_bitmap_targets(
    starts, table, words, boxes, images, instances, height, width, binarize=True
):
    return boxes.new_empty(len(boxes), height, width)


@torch.library.register_fake('kat_mm::polygon_targets', lib=library)
def _fake_polygon_targets(
    starts, table, polygons, vertices, boxes, images, instances, height, width
):
    return boxes.new_empty(len(boxes), height, width)
