"""mmcv.ops.nms, soft_nms, nms_match and batched_nms against plain loops over pairs of boxes."""

import math

import mmcv.ops
import numpy as np
import pytest
import torch


def some_boxes(count, seed=0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 15, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(3, 20, (count, 2))], axis=1)
    return torch.tensor(boxes, dtype=torch.float32), torch.tensor(
        rng.permutation(count) / count, dtype=torch.float32
    )


def iou(a, b, offset):
    a, b = a.tolist(), b.tolist()
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    shared = max(width, 0) * max(height, 0)
    areas = sum((c[2] - c[0] + offset) * (c[3] - c[1] + offset) for c in (a, b))
    return shared / (areas - shared)


def greedy(boxes, scores, threshold, offset):
    kept = []
    for i in scores.argsort(descending=True).tolist():
        if all(iou(boxes[i], boxes[j], offset) <= threshold for j in kept):
            kept.append(i)
    return kept


def soft(boxes, scores, threshold, sigma, min_score, method, offset):
    scores = dict(enumerate(scores.tolist()))
    kept = []
    while scores:
        best = max(scores, key=scores.get)
        kept.append((best, scores.pop(best)))
        for i in list(scores):
            overlap = iou(boxes[best], boxes[i], offset)
            if method == 'gaussian':
                scores[i] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= threshold:
                scores[i] *= 0 if method == 'naive' else 1 - overlap
            if scores[i] < min_score:
                del scores[i]
    return [i for i, _ in kept], [score for _, score in kept]


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.3, 0.6])
def test_nms(device, offset, threshold):
    boxes, scores = some_boxes(60)
    dets, kept = mmcv.ops.nms(boxes.to(device), scores.to(device), threshold, offset)
    expected = greedy(boxes, scores, threshold, offset)
    assert 5 < len(expected) < 55
    assert kept.tolist() == expected
    torch.testing.assert_close(dets.cpu(), torch.cat([boxes, scores[:, None]], 1)[expected])


def test_nms_offset_matters():
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 2]])
    scores = torch.tensor([0.9, 0.8])
    assert len(mmcv.ops.nms(boxes, scores, 0.6, 0)[1]) == 2  # IoU 1/2
    assert len(mmcv.ops.nms(boxes, scores, 0.6, 1)[1]) == 1  # IoU 4/6


def test_nms_options_and_numpy():
    boxes, scores = some_boxes(60)
    expected = [i for i in greedy(boxes, scores, 0.5, 0) if scores[i] > 0.3][:4]
    dets, kept = mmcv.ops.nms(boxes.numpy(), scores.numpy(), 0.5, score_threshold=0.3, max_num=4)
    assert isinstance(dets, np.ndarray)
    assert kept.tolist() == expected


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_nms_dtypes(device, dtype):
    boxes, scores = (tensor.to(dtype) for tensor in some_boxes(40))
    dets, kept = mmcv.ops.nms(boxes.to(device), scores.to(device), 0.5)
    assert dets.dtype == dtype
    assert kept.tolist() == mmcv.ops.nms(boxes.double(), scores.double(), 0.5)[1].tolist()


def test_boxes_that_require_a_gradient(device):
    boxes, scores = (tensor.to(device).requires_grad_() for tensor in some_boxes(10))
    for function in (mmcv.ops.nms, mmcv.ops.soft_nms):
        assert len(function(boxes, scores, 0.5)[1])
    dets = torch.cat([boxes, scores[:, None]], 1)
    assert len(mmcv.ops.nms_match(dets, 0.5))


def test_no_boxes(device):
    boxes, scores = torch.zeros(0, 4, device=device), torch.zeros(0, device=device)
    for function in (mmcv.ops.nms, mmcv.ops.soft_nms):
        dets, kept = function(boxes, scores, 0.5)
        assert dets.shape == (0, 5)
        assert kept.shape == (0,)
        assert kept.dtype == torch.int64


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
@pytest.mark.parametrize('offset', [0, 1])
def test_soft_nms(device, method, offset):
    boxes, scores = some_boxes(40)
    config = {'iou_threshold': 0.3, 'sigma': 0.5, 'min_score': 0.05, 'method': method}
    dets, kept = mmcv.ops.soft_nms(boxes.to(device), scores.to(device), offset=offset, **config)
    index, rescored = soft(boxes, scores, 0.3, 0.5, 0.05, method, offset)
    assert len(index) < 40
    assert kept.tolist() == index
    torch.testing.assert_close(dets[:, :4].cpu(), boxes[index])
    torch.testing.assert_close(dets[:, 4].cpu(), torch.tensor(rescored))


def test_soft_nms_keeps_the_best_box_below_min_score():
    boxes, scores = some_boxes(5)
    _, kept = mmcv.ops.soft_nms(boxes, scores / 100, min_score=0.5)
    assert kept.tolist() == [int(scores.argmax())]


def test_soft_nms_of_empty_boxes_is_finite():
    boxes, scores = torch.ones(3, 4), torch.tensor([0.3, 0.2, 0.1])
    dets, kept = mmcv.ops.soft_nms(boxes, scores, method='gaussian')
    assert kept.tolist() == [0, 1, 2]
    torch.testing.assert_close(dets[:, 4], scores)


def test_nms_match(device):
    boxes, scores = some_boxes(30)
    dets = torch.cat([boxes, scores[:, None]], 1)
    groups = mmcv.ops.nms_match(dets.to(device), 0.4)
    waiting = scores.argsort(descending=True).tolist()
    for group in groups:
        expected = [
            i for i in waiting if i == waiting[0] or iou(boxes[waiting[0]], boxes[i], 0) >= 0.4
        ]
        assert group.tolist() == expected
        waiting = [i for i in waiting if i not in expected]
    assert waiting == []
    assert len(groups) < 30
    assert mmcv.ops.nms_match(dets[:0], 0.4) == []


@pytest.mark.parametrize('split_thr', [1000, 10])
def test_batched_nms(device, split_thr):
    boxes, scores = some_boxes(60)
    labels = torch.arange(60) % 3
    config = {'type': 'nms', 'iou_threshold': 0.4, 'split_thr': split_thr}
    dets, kept = mmcv.ops.batched_nms(
        boxes.to(device), scores.to(device), labels.to(device), config
    )
    expected = []
    for label in range(3):
        own = (labels == label).nonzero().squeeze(1)
        expected.extend(own[greedy(boxes[own], scores[own], 0.4, 0)].tolist())
    expected.sort(key=lambda i: -scores[i])
    assert kept.tolist() == expected
    torch.testing.assert_close(dets.cpu(), torch.cat([boxes, scores[:, None]], 1)[expected])


def test_batched_soft_nms(device):
    boxes, scores = some_boxes(30)
    labels = torch.arange(30) % 2
    config = {'type': 'soft_nms', 'iou_threshold': 0.4, 'min_score': 0.01}
    dets, kept = mmcv.ops.batched_nms(
        boxes.to(device), scores.to(device), labels.to(device), config
    )
    expected = {}
    for label in range(2):
        own = (labels == label).nonzero().squeeze(1)
        index, rescored = soft(boxes[own], scores[own], 0.4, 0.5, 0.01, 'linear', 0)
        expected.update(zip(own[index].tolist(), rescored, strict=True))
    assert set(kept.tolist()) == set(expected)
    torch.testing.assert_close(dets[:, 4].cpu(), torch.tensor([expected[i] for i in kept.tolist()]))
