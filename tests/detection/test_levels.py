"""Proposals of all levels at once, against the steps of mmdet and mmcv level by level."""

import mmcv.ops
import pytest
import torch
from boxes import random_boxes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder

from kat_mm.detection import decode_boxes, merge_levels, nms, top_k

ANY_DEVICE = dict(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize('sizes', [(3000, 750, 190, 7), (5000,), (40, 4100, 90000), (1, 2)])
@pytest.mark.parametrize('most', [1, 7, 64, 1000, 4000, 5000])
def test_the_best_scores(device, sizes, most):
    scores = torch.randn(3, sum(sizes), device=device)
    values, indices = top_k(scores, sizes, most)
    columns = min(most, max(sizes))
    assert values.shape == indices.shape == (3, len(sizes), columns)
    start = 0
    for i, size in enumerate(sizes):
        level = scores[:, start : start + size]
        count = min(most, size)
        if size > most:
            level = level.sort(dim=1, descending=True).values
        assert torch.equal(values[:, i, :count], level[:, :count])
        chosen = indices[:, i, :count]
        assert torch.equal(scores.gather(1, chosen), values[:, i, :count])
        assert all(len(row.unique()) == count for row in chosen)
        assert ((chosen >= start) & (chosen < start + size)).all()
        assert not values[:, i, count:].any()
        assert not indices[:, i, count:].any()
        start += size


@settings(max_examples=40, **ANY_DEVICE)
@given(
    count=st.integers(2, 3000),
    levels=st.integers(1, 50),
    share=st.floats(0, 1),
    seed=st.integers(0, 999),
)
def test_of_equal_scores_a_gpu_takes_the_first(device, count, levels, share, seed):
    torch.manual_seed(seed)
    scores = torch.randint(levels, (2, count)) / 16 - 1
    most = max(int(count * share), 1)
    values, indices = top_k(scores.to(device), (count,), most)
    expected = scores.sort(dim=1, descending=True, stable=device == 'cuda')
    if most == count:
        assert torch.equal(indices[:, 0].cpu(), torch.arange(count).expand(2, -1))
    else:
        assert torch.equal(values[:, 0].cpu(), expected.values[:, :most])
        assert torch.equal(indices[:, 0].cpu(), expected.indices[:, :most])


def test_scores_that_are_not_numbers(device):
    scores = torch.randn(1, 2000, device=device)
    scores[0, ::7], scores[0, 3::7], scores[0, 4::7] = float('nan'), float('inf'), -float('inf')
    values, _ = top_k(scores, (2000,), 900)
    expected = scores.sort(dim=1, descending=True).values[:, :900]
    torch.testing.assert_close(values[:, 0], expected, rtol=0, atol=0, equal_nan=True)


def some_deltas(device, dtype=torch.float32):
    anchors = random_boxes(100).to(device) + torch.rand(100, 4, device=device)
    deltas = torch.randn(2, 100, 4, device=device).to(dtype)
    sizes = (70, 30)
    _, indices = top_k(torch.rand(2, 100, device=device), sizes, 50)
    limits = torch.tensor([[60.0, 50.0] * 2, [40.0, 64.0] * 2], device=device)
    return anchors, deltas, indices, sizes, limits


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize('stds', [(1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.3)])
@pytest.mark.parametrize('min_size', [-1, 0, 20, 1000])
def test_decoded_boxes(device, dtype, stds, min_size):
    anchors, deltas, indices, sizes, limits = some_deltas(device, dtype)
    factors = torch.tensor([[0.5, 2.0] * 2, [1.5, 0.75] * 2], device=device)
    for factor in (None, factors):
        boxes, shifted, valid = decode_boxes(
            anchors, deltas, indices, sizes, limits, factor, stds=stds, min_size=min_size
        )
        for image in range(2):
            width, height = limits[image, :2].tolist()
            coder = DeltaXYWHBBoxCoder(target_stds=stds)
            chosen = indices[image].flatten()
            expected = coder.decode(
                anchors[chosen], deltas[image, chosen].float(), max_shape=(height, width)
            )
            if factor is not None:
                expected = expected * factor[image]
            torch.testing.assert_close(boxes[image].flatten(0, 1), expected, rtol=1e-6, atol=1e-6)
            extent = boxes[image, ..., 2:] - boxes[image, ..., :2]
            is_large = (extent > (min_size if min_size >= 0 else -torch.inf)).all(-1)
            is_large[1, 30:] = False
            assert torch.equal(valid[image], is_large)
            largest = boxes[image][is_large].max() if is_large.any() else boxes.new_zeros(())
            moved = boxes[image, 1] + (largest + 1)
            assert torch.equal(shifted[image, 0], boxes[image, 0])
            assert torch.equal(shifted[image, 1], moved)


@settings(max_examples=40, **ANY_DEVICE)
@given(
    levels=st.integers(1, 5),
    count=st.integers(1, 60),
    kinds=st.integers(1, 40),
    limit=st.integers(0, 400),
    seed=st.integers(0, 999),
)
def test_merged_levels_are_those_of_batched_nms(device, levels, count, kinds, limit, seed):
    torch.manual_seed(seed)
    boxes = random_boxes(2, levels, count).to(device)
    scores = (torch.randint(kinds, (2, levels, count)) / kinds).to(device)
    number = torch.arange(levels, device=device)
    shift = number[:, None, None] * (boxes.flatten(1).amax(1)[:, None, None, None] + 1)
    kept, counts = nms((boxes + shift).flatten(0, 1), scores.flatten(0, 1), 0.5)
    kept, counts = kept.view(2, levels, count), counts.view(2, levels)
    found, found_scores, totals = merge_levels(boxes, scores, kept, counts, limit)
    for i in range(2):
        expected, _ = mmcv.ops.batched_nms(
            boxes[i].flatten(0, 1),
            scores[i].flatten(),
            number.repeat_interleave(count),
            dict(type='nms', iou_threshold=0.5),
        )
        expected = expected[:limit]
        assert totals[i] == len(expected)
        assert torch.equal(found[i, : len(expected)], expected[:, :4])
        assert torch.equal(found_scores[i, : len(expected)], expected[:, 4])
        assert not found[i, len(expected) :].any()
        assert not found_scores[i, len(expected) :].any()


def test_opcheck():
    ops = torch.ops.kat_mm
    torch.library.opcheck(ops.top_k.default, (torch.rand(2, 100), [70, 30], 20))
    anchors, deltas, indices, sizes, limits = some_deltas('cpu')
    arguments = anchors, deltas, indices, list(sizes), limits, None, [0.0] * 4, [1.0] * 4, 3.0
    torch.library.opcheck(ops.decode_boxes.default, arguments)
    boxes, _, _ = decode_boxes(anchors, deltas, indices, sizes, limits)
    kept = indices.new_zeros(2, 2, 5)
    merged = boxes, torch.rand(2, 2, 50), kept, torch.tensor([[5, 2], [0, 1]]), 4
    torch.library.opcheck(ops.merge_levels.default, merged)
