"""The boxes that an RoI head is trained on: assigned and drawn for a whole batch at once."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from mmdet.models.task_modules.assigners import MaxIoUAssigner
from mmdet.models.task_modules.samplers import RandomSampler
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...detection import assign, sample
from .ground_truth import padded_ground_truth, to_device
from .proposals import Proposals


@dataclass
class RoISamples:
    """Rows of boxes, those of an image one after the other: positive, then negative ones.

    Attributes:
        images: [R], int64, the image of each row.
        boxes: [R, 4], fp32.
        is_positive: [R], bool.
        is_sampled: [R], bool; False in rows that fill up what an image has fewer than asked for.
        gt_indices: [R], int64, which ground truth of its image a positive row has; 0 elsewhere.
        gt_boxes: [R, 4], fp32, its box.
        gt_labels: [R], int64, its class.
    """

    images: Tensor
    boxes: Tensor
    is_positive: Tensor
    is_sampled: Tensor
    gt_indices: Tensor
    gt_boxes: Tensor
    gt_labels: Tensor

    def take(self, rows: Tensor) -> 'RoISamples':
        """Returns the rows with these indices."""
        values = {f.name: getattr(self, f.name).index_select(0, rows) for f in fields(self)}
        return replace(self, **values)

    def rois(self) -> Tensor:
        """Returns [R, 5], with an image index of -1 in rows that fill up."""
        images = torch.where(self.is_sampled, self.images, -1)
        return torch.cat([images[:, None].to(self.boxes.dtype), self.boxes], 1)

    def without_filling(self) -> 'RoISamples':
        """Returns the rows that are boxes, for which the host must wait for the device."""
        return self.take(self.is_sampled.nonzero()[:, 0])

    def first_of_images(self, images: int, count: int) -> 'RoISamples':
        """Returns the first rows of each image, among which are all positive ones."""

        def first(values: Tensor) -> Tensor:
            return values.view(images, -1, *values.shape[1:])[:, :count].flatten(0, 1)

        return replace(self, **{f.name: first(getattr(self, f.name)) for f in fields(self)})

    def positives_first(self) -> Tensor:
        """Returns the indices of all rows, those of positive ones in front and in their order."""
        return torch.sort(~self.is_positive, stable=True).indices


def padded_proposals(proposals: Sequence, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns boxes [B, K, 4] in fp32 and counts [B] of mmdet's proposals, or of padded ones."""
    if isinstance(proposals, Proposals) and proposals.are_tensors:
        return proposals.boxes, proposals.counts
    boxes = [getattr(p.bboxes, 'tensor', p.bboxes).detach().float() for p in proposals]
    counts = to_device([len(b) for b in boxes], device, torch.int64)
    return pad_sequence(boxes, batch_first=True), counts


def draw_samples(
    proposals: Sequence,
    gt_instances: Sequence,
    assigner: MaxIoUAssigner,
    sampler: RandomSampler,
    device: torch.device,
    keys: Tensor | None = None,
) -> RoISamples:
    """Assigns ground truth to the proposals of a batch and draws those to train on.

    Args:
        proposals: mmdet's InstanceData of each image, or padded ones.
        gt_instances: mmdet's InstanceData of each image, with `bboxes` and `labels`.
        keys: [B, G + K] in [0, 1) of padded ground truth and proposals, or [B, K] where the sampler
            adds no ground truth, with K at least 1: the smallest are drawn. Random by default.
    """
    gt_boxes, gt_labels, gt_counts = padded_ground_truth(gt_instances, device)
    boxes, counts = padded_proposals(proposals, device)
    if not boxes.shape[1]:  # a column to draw from, in which no box is valid
        boxes = boxes.new_zeros(len(boxes), 1, 4)
    valid = torch.arange(boxes.shape[1], device=device) < counts[:, None]
    assigned, _ = assign(
        boxes,
        valid,
        gt_boxes,
        gt_counts,
        assigner.pos_iou_thr,
        assigner.neg_iou_thr,
        assigner.min_pos_iou,
        assigner.match_low_quality,
        assigner.gt_max_assign_all,
    )
    if sampler.add_gt_as_proposals:
        numbers = torch.arange(1, gt_boxes.shape[1] + 1, device=device)
        own = torch.where(numbers <= gt_counts[:, None], numbers, -1)
        assigned, boxes = torch.cat([own, assigned], 1), torch.cat([gt_boxes, boxes], 1)
    indices, is_positive, is_sampled = sample(
        assigned, sampler.num, sampler.pos_fraction, sampler.neg_pos_ub, keys
    )
    gt_indices = torch.where(is_positive, assigned.gather(1, indices) - 1, 0)

    def gather(values: Tensor, at: Tensor) -> Tensor:
        return values.gather(1, at[..., None].expand(-1, -1, 4)).flatten(0, 1)

    images = torch.arange(len(boxes), device=device)[:, None].expand_as(indices)
    return RoISamples(
        images.flatten(),
        gather(boxes, indices),
        is_positive.flatten(),
        is_sampled.flatten(),
        gt_indices.flatten(),
        gather(gt_boxes, gt_indices),
        gt_labels.gather(1, gt_indices).flatten(),
    )
