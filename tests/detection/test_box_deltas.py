"""Deltas of boxes, to the bit those of mmdet's DeltaXYWHBBoxCoder."""

import pytest
import torch
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder

from kat_mm.detection import box_deltas

MEANS_AND_STDS = [
    ((0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0, 1.0)),
    ((0.0, 0.0, 0.0, 0.0), (0.1, 0.1, 0.2, 0.2)),
    ((0.1, -0.2, 0.0, 0.3), (1.0, 1.0, 1.0, 1.0)),
]


def some_boxes(device):
    boxes = torch.rand(3, 50, 4, device=device) * 100
    boxes[..., 2:] += boxes[..., :2] + 10
    return boxes


@pytest.mark.parametrize(('means', 'stds'), MEANS_AND_STDS)
def test_equal_those_of_mmdet(device, means, stds):
    coder = DeltaXYWHBBoxCoder(means, stds)
    boxes, gt_boxes = some_boxes(device), some_boxes(device)
    deltas = box_deltas.encode(boxes, gt_boxes, means, stds)
    assert torch.equal(deltas, coder.encode(boxes, gt_boxes))
    deltas = torch.randn_like(boxes) * 6
    found = box_deltas.decode(boxes, deltas, means, stds)
    expected = coder.decode(boxes.view(-1, 4), deltas.view(-1, 4)).view(boxes.shape)
    assert torch.equal(found, expected)

    sizes = torch.tensor([[90.0, 120.0], [70.0, 50.0], [200.0, 3.0]], device=device)
    limits = sizes.repeat(1, 2)[:, None]
    found = box_deltas.decode(boxes, deltas, means, stds, limits)
    for i, (width, height) in enumerate(sizes.tolist()):
        expected = coder.decode(boxes[i], deltas[i], max_shape=(height, width))
        assert torch.equal(found[i], expected)


def test_decoding_undoes_encoding(device):
    boxes, gt_boxes = some_boxes(device), some_boxes(device)
    for means, stds in MEANS_AND_STDS:
        deltas = box_deltas.encode(boxes, gt_boxes, means, stds)
        found = box_deltas.decode(boxes, deltas, means, stds)
        torch.testing.assert_close(found, gt_boxes, rtol=1e-5, atol=1e-3)


def test_gradients_are_those_of_mmdet():
    boxes, deltas = some_boxes('cpu')[0], torch.randn(50, 4)
    means, stds = MEANS_AND_STDS[1]
    grads = []
    with torch.inference_mode():
        box_deltas.decode(boxes, deltas, means, stds)  # whose constants must serve training
    for decode in (
        lambda deltas: box_deltas.decode(boxes, deltas, means, stds),
        lambda deltas: DeltaXYWHBBoxCoder(means, stds).decode(boxes, deltas),
    ):
        leaf = deltas.clone().requires_grad_()
        decode(leaf).square().sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)
