"""Padded ground truth."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def padded_ground_truth(instances, device) -> tuple[Tensor, Tensor, Tensor]:
    """Returns boxes [B, G, 4], labels [B, G] and counts [B]."""
    boxes = [getattr(x.bboxes, 'tensor', x.bboxes).to(device) for x in instances]
    counts = torch.tensor([len(x) for x in boxes]).to(device, non_blocking=True)
    boxes = [torch.nn.functional.pad(x.float(), (0, 0, 0, int(not len(x)))) for x in boxes]
    labels = [
        torch.nn.functional.pad(x.labels.to(device), (0, int(not len(x.labels))))
        for x in instances
    ]
    return pad_sequence(boxes, True), pad_sequence(labels, True), counts
