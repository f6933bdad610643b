"""Assignment of ground truth, against mmdet's MaxIoUAssigner image by image."""

import pytest
import torch
from boxes import random_boxes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmdet.models.task_modules.assigners import MaxIoUAssigner
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from kat_mm.detection import assign

OPTIONS = {
    'rpn': dict(pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3),
    'rcnn': dict(pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5, match_low_quality=False),
    'any overlap': dict(pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.0),
    'first': dict(pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.1, gt_max_assign_all=False),
    'none overlaps': dict(pos_iou_thr=0.7, neg_iou_thr=0.3, gt_max_assign_all=False),
    'range': dict(pos_iou_thr=0.6, neg_iou_thr=(0.1, 0.4), min_pos_iou=0.2),
}


def ours(boxes, valid, gt_boxes, gt_counts, pos_iou_thr, neg_iou_thr, min_pos_iou=0.0, **options):
    return assign(
        boxes, valid, gt_boxes, gt_counts, pos_iou_thr, neg_iou_thr, min_pos_iou, **options
    )


def expected(boxes, valid, gt_boxes, gt_counts, **options):
    with DefaultScope.overwrite_default_scope('mmdet'):
        assigner = MaxIoUAssigner(**options)
    assigned = torch.full(valid.shape, -1, device=boxes.device)
    overlaps = torch.zeros(valid.shape, device=boxes.device)
    for i, count in enumerate(gt_counts.tolist()):
        gt = InstanceData(bboxes=gt_boxes[i, :count], labels=gt_counts.new_zeros(count))
        result = assigner.assign(InstanceData(priors=boxes[i % len(boxes)][valid[i]]), gt)
        assigned[i, valid[i]] = result.gt_inds
        overlaps[i, valid[i]] = result.max_overlaps
    return assigned, overlaps


@pytest.mark.parametrize('name', OPTIONS)
@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize(('count', 'most'), [(700, 9), (3000, 150)])
def test_equals_mmdet(device, name, shared, count, most):
    counts = torch.tensor([most // 2, 0, most, 1], device=device)
    boxes = random_boxes(1 if shared else 4, count).to(device)
    gt_boxes = random_boxes(4, most).to(device)
    valid = torch.rand(4, count, device=device) < 0.8
    for mask in (None, valid):
        found = ours(boxes, mask, gt_boxes, counts, **OPTIONS[name])
        everywhere = torch.ones_like(valid) if mask is None else mask
        wanted = expected(boxes, everywhere, gt_boxes, counts, **OPTIONS[name])
        for one, other in zip(found, wanted, strict=True):
            assert torch.equal(one, other)
    assert set(found[0].unique().tolist()) >= {-1, 0, 1}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    count=st.integers(1, 300),
    most=st.integers(1, 20),
    pos=st.sampled_from([0.25, 0.5, 0.7]),
    low=st.sampled_from([0.0, 0.1]),
    high=st.sampled_from([0.25, 0.3]),
    least=st.sampled_from([0.0, 0.25, 0.3]),
    low_quality=st.booleans(),
    assign_all=st.booleans(),
    grid=st.integers(2, 16),
    seed=st.integers(0, 999),
)
def test_any_options(
    device, count, most, pos, low, high, least, low_quality, assign_all, grid, seed
):
    torch.manual_seed(seed)
    boxes, gt_boxes = (random_boxes(2, n, grid=grid).to(device) for n in (count, most))
    counts = torch.randint(most + 1, (2,), device=device)
    valid = torch.rand(2, count, device=device) < 0.8
    valid[:, 0] = True
    options = dict(
        pos_iou_thr=pos,
        neg_iou_thr=(low, high),
        min_pos_iou=least,
        match_low_quality=low_quality,
        gt_max_assign_all=assign_all,
    )
    found = ours(boxes, valid, gt_boxes, counts, **options)
    for one, other in zip(found, expected(boxes, valid, gt_boxes, counts, **options), strict=True):
        assert torch.equal(one, other)


def test_real_coordinates(device):
    """IoUs to the last bit, which equalities between them depend on."""
    boxes, gt_boxes = (torch.rand(2, n, 4, device=device) * 600 for n in (5000, 20))
    for x in (boxes, gt_boxes):
        x[..., 2:] += x[..., :2]
    counts = torch.tensor([20, 13], device=device)
    everywhere = torch.ones(2, 5000, dtype=torch.bool, device=device)
    found = ours(boxes, None, gt_boxes, counts, **OPTIONS['any overlap'])
    wanted = expected(boxes, everywhere, gt_boxes, counts, **OPTIONS['any overlap'])
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])


def test_half_precision_boxes_are_widened(device):
    boxes, gt_boxes = random_boxes(1, 50).to(device), random_boxes(1, 3).to(device)
    counts = torch.tensor([3], device=device)
    wide = assign(boxes, None, gt_boxes, counts, 0.5, 0.5)
    half = assign(boxes.half(), None, gt_boxes.half(), counts, 0.5, 0.5)
    assert torch.equal(wide[0], half[0])
    assert half[1].dtype == torch.float32


@pytest.mark.parametrize(('boxes', 'gt'), [(0, 3), (5, 0)])
def test_nothing_to_assign(device, boxes, gt):
    counts = torch.zeros(2, dtype=torch.int64, device=device)
    inputs = random_boxes(2, boxes).to(device), None, random_boxes(2, gt).to(device), counts
    assigned, overlaps = assign(*inputs, 0.5, 0.5)
    assert assigned.shape == overlaps.shape == (2, boxes)
    assert not assigned.any()
    assert not overlaps.any()


def test_opcheck():
    arguments = random_boxes(1, 40), None, random_boxes(3, 5), torch.tensor([5, 0, 2])
    settings = 0.7, 0.0, 0.3, 0.3, True, True
    torch.library.opcheck(torch.ops.kat_mm.max_iou_assign.default, (*arguments, *settings))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r'gt_counts \[B\].*\(3,\)'):
        assign(random_boxes(2, 4), None, random_boxes(2, 3), torch.zeros(3), 0.5, 0.5)
