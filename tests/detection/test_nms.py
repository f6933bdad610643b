"""Suppression of many problems at once, against torchvision's of each."""

import pytest
import torch
import torchvision
from boxes import random_boxes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kat_mm.detection import nms


def expected(boxes, scores, threshold, valid, max_keep=None):
    lists = []
    for i in range(len(boxes)):
        indices = valid[i].nonzero()[:, 0]
        kept = torchvision.ops.nms(boxes[i][indices].float(), scores[i][indices], threshold)
        lists.append(indices[kept][:max_keep].tolist())
    return lists


def check(boxes, scores, threshold, valid=None, max_keep=None):
    indices, counts = nms(boxes, scores, threshold, valid, max_keep)
    everywhere = torch.ones_like(scores, dtype=torch.bool) if valid is None else valid
    wanted = expected(boxes, scores, threshold, everywhere, max_keep)
    assert indices.dtype == counts.dtype == torch.int64
    assert indices.shape == (len(boxes), boxes.shape[1] if max_keep is None else max_keep)
    assert counts.tolist() == [len(kept) for kept in wanted]
    for found, kept in zip(indices.tolist(), wanted, strict=True):
        assert found[: len(kept)] == kept
        assert not any(found[len(kept) :])
    return counts


@pytest.mark.parametrize('threshold', [0.0, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize('count', [1, 63, 64, 65, 500, 2100])
def test_equals_torchvision(device, threshold, count):
    boxes = torch.rand(3, count, 4, device=device) * 100
    boxes[..., 2:] = boxes[..., :2] + torch.rand(3, count, 2, device=device) * 60
    scores = torch.rand(3, count, device=device)
    check(boxes, scores, threshold)
    valid = torch.rand(3, count, device=device) < torch.tensor([[0.7], [0.0], [1.0]], device=device)
    check(boxes, scores, threshold, valid)
    for max_keep in (0, 1, 40, 3000):
        check(boxes, scores, threshold, valid, max_keep)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    problems=st.integers(1, 5),
    count=st.integers(0, 200),
    threshold=st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.75]),
    levels=st.integers(1, 9),
    max_keep=st.none() | st.integers(0, 50),
    seed=st.integers(0, 999),
)
def test_ties_of_scores_and_overlaps(device, problems, count, threshold, levels, max_keep, seed):
    """Boxes on a coarse grid, IoUs at the threshold, few scores, empty boxes."""
    torch.manual_seed(seed)
    boxes = random_boxes(problems, count).to(device)
    scores = (torch.randint(levels, (problems, count)) / levels).to(device)
    valid = torch.rand(problems, count, device=device) < 0.8
    check(boxes, scores, threshold, valid, max_keep)


def test_long_chains(device):
    """Each box suppresses the next one, whose suppression frees the one after it."""
    start = torch.arange(300.0, device=device)
    boxes = torch.stack([start, start * 0, start + 3, start * 0 + 1], 1)[None]
    scores = torch.linspace(1, 0, 300, device=device)[None]
    assert check(boxes, scores, 0.4).item() == 150


def test_scores_that_are_not_numbers_or_infinite(device):
    boxes = random_boxes(1, 100).to(device)
    scores = torch.rand(1, 100, device=device)
    scores[0, ::7] = float('nan')
    scores[0, 3::7] = -float('inf')
    check(boxes, scores, 0.5, torch.rand(1, 100, device=device) < 0.7)


def test_half_precision_boxes_are_widened(device):
    boxes, scores = random_boxes(2, 90).to(device), torch.rand(2, 90, device=device)
    for wide, half in zip(nms(boxes, scores, 0.5), nms(boxes.half(), scores, 0.5), strict=True):
        assert torch.equal(wide, half)


def test_opcheck():
    boxes, order = random_boxes(2, 20), torch.stack([torch.randperm(20) for _ in range(2)])
    torch.library.opcheck(torch.ops.kat_mm.nms.default, (boxes, order, order > 3, 0.5, 7))


def test_arguments_are_checked():
    boxes, scores = random_boxes(2, 20), torch.rand(2, 20)
    with pytest.raises(ValueError, match=r'valid \[P, N\].*\(2, 19\)'):
        nms(boxes, scores, 0.5, torch.ones(2, 19, dtype=torch.bool))
    with pytest.raises(ValueError, match='max_keep must not be negative, got -1'):
        nms(boxes, scores, 0.5, max_keep=-1)
