"""Predictions for flipped views are mapped back and merged, masks included."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import nn

import kat_mm.openmmlab  # noqa: F401
from kat_mm.openmmlab.detection.instance_tta import InstanceTTAModel

HEIGHT, WIDTH = 20, 30
BOXES = torch.tensor([[2.0, 3, 12, 9], [15, 10, 29, 19]])
AXES = {'horizontal': (-1,), 'vertical': (-2,), 'diagonal': (-2, -1)}


class Detector(nn.Module):
    def test_step(self, data):
        """What BaseTTAModel asks of a detector; these tests merge predictions of their own."""


def masks_of(boxes):
    """Masks of a shape without symmetry in the boxes."""
    masks = torch.zeros(len(boxes), HEIGHT, WIDTH, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1 : x1 + 2] = mask[y1 : y1 + 1, x1:x2] = True
    return masks


def sample(boxes, scores, labels, direction=None, masks=True):
    """A detector's output for a view: boxes and masks of the image, flipped in a direction."""
    instances = InstanceData(
        bboxes=boxes.clone(), scores=torch.tensor(scores), labels=torch.tensor(labels)
    )
    if masks:
        instances.masks = masks_of(boxes)
    for axis in AXES.get(direction, ()):
        low, high, size = (0, 2, WIDTH) if axis == -1 else (1, 3, HEIGHT)
        flipped = instances.bboxes.clone()
        flipped[:, low] = size - instances.bboxes[:, high]
        flipped[:, high] = size - instances.bboxes[:, low]
        instances.bboxes = flipped
        if masks:
            instances.masks = instances.masks.flip(axis)
    view = dict(ori_shape=(HEIGHT, WIDTH), flip=direction is not None, flip_direction=direction)
    return DetDataSample(metainfo=view, pred_instances=instances)


def merge(*views, nms='nms', max_per_img=100):
    config = dict(nms=dict(type=nms, iou_threshold=0.5), max_per_img=max_per_img)
    model = InstanceTTAModel(tta_cfg=ConfigDict(config), module=Detector())
    (merged,) = model.merge_preds([list(views)])
    return merged.pred_instances


@pytest.mark.parametrize('direction', AXES)
def test_the_better_view_of_an_object_stays(direction):
    plain = sample(BOXES, [0.9, 0.3], [1, 2])
    flipped = sample(BOXES + 0.5, [0.8, 0.4], [1, 2], direction)
    merged = merge(plain, flipped)
    torch.testing.assert_close(merged.bboxes, torch.stack([BOXES[0], BOXES[1] + 0.5]))
    torch.testing.assert_close(merged.scores, torch.tensor([0.9, 0.4]))
    assert merged.labels.tolist() == [1, 2]
    assert torch.equal(merged.masks, masks_of(torch.stack([BOXES[0], BOXES[1] + 0.5])))


def test_what_one_view_alone_shows_is_added():
    plain = sample(BOXES[:1], [0.9], [1])
    flipped = sample(BOXES[1:], [0.95], [1], 'horizontal')
    merged = merge(plain, flipped)
    assert torch.equal(merged.bboxes, BOXES.flip(0))
    assert torch.equal(merged.masks, masks_of(BOXES.flip(0)))


def test_no_more_than_the_limit():
    merged = merge(sample(BOXES, [0.5, 0.9], [0, 0]), max_per_img=1)
    assert torch.equal(merged.bboxes, BOXES[1:])
    assert len(merged.masks) == len(merged.scores) == 1


def test_soft_nms_lowers_scores():
    views = [sample(BOXES[:1], [0.9], [0]), sample(BOXES[:1], [0.8], [0], 'vertical')]
    merged = merge(*views, nms='soft_nms')
    assert merged.scores[0] == pytest.approx(0.9)
    assert all(merged.scores[1:] < 0.7)


def test_boxes_without_masks():
    merged = merge(
        sample(BOXES, [0.9, 0.3], [1, 2], masks=False),
        sample(BOXES, [0.8, 0.4], [1, 2], 'horizontal', masks=False),
    )
    torch.testing.assert_close(merged.scores, torch.tensor([0.9, 0.4]))
    assert 'masks' not in merged


def test_nothing_found():
    empty = BOXES[:0]
    merged = merge(sample(empty, [], []), sample(empty, [], [], 'horizontal'))
    assert len(merged) == 0
    assert merged.masks.shape == (0, HEIGHT, WIDTH)
