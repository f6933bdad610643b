"""The ground truth of a batch as padded tensors, and how small numbers get to a GPU."""

from collections.abc import Sequence

import torch
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor


def to_device(values, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Copies numbers to a device without waiting for what it does."""
    device = torch.device(device)
    is_gpu = device.type == 'cuda'
    return torch.tensor(values, dtype=dtype, pin_memory=is_gpu).to(device, non_blocking=is_gpu)


def padded_ground_truth(
    batch_gt_instances: Sequence[InstanceData], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Collects boxes and labels of a batch, by one copy to the device where they are there.

    Returns:
        boxes: [B, G, 4], fp32, padded with zeros; G is at least 1.
        labels: [B, G], int64, padded with zeros.
        counts: [B], int64, the ground truth of each image.
    """
    boxes = [get_box_tensor(gt.bboxes) for gt in batch_gt_instances]
    labels = [gt.labels for gt in batch_gt_instances]
    counts = [len(each) for each in labels]
    most, total = max([1, *counts]), sum(counts)
    # Where each place of [B, G] is in the concatenation; behind it, a row of zeros.
    numbers, start = [], 0
    for count in counts:
        numbers += [*range(start, start + count), *[total] * (most - count)]
        start += count
    numbers = to_device(numbers + counts, device, torch.int64)
    places, counts = numbers.split([len(counts) * most, len(counts)])
    boxes.append(boxes[0].new_zeros(1, 4))
    labels.append(labels[0].new_zeros(1))
    boxes = torch.cat(boxes).to(device, torch.float32).index_select(0, places)
    labels = torch.cat(labels).to(device, torch.int64).index_select(0, places)
    return boxes.view(-1, most, 4), labels.view(-1, most), counts
