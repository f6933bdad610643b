"""Masks pasted into images, against mmdet's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kat_mm.detection import paste_masks


def pasted_by_mmdet(masks, boxes, size, threshold):
    heads = pytest.importorskip('mmdet.models.roi_heads.mask_heads.fcn_mask_head')
    if boxes.is_cuda:
        pasted, _ = heads._do_paste_mask(masks[:, None], boxes, *size, skip_empty=False)
        return pasted >= threshold
    result = torch.zeros(len(masks), *size, dtype=torch.bool)
    for i in range(len(masks)):  # as it does on a CPU, where it raises for boxes that are outside
        low, high = (boxes[i, :2].floor() - 1).clamp(min=0), boxes[i, 2:].ceil() + 1
        if (low > torch.minimum(high, high.new_tensor([size[1], size[0]]))).any():
            continue
        pasted, place = heads._do_paste_mask(masks[i, None, None], boxes[i, None], *size)
        result[(i, *place)] = pasted[0] >= threshold
    return result


def random_boxes(count, device='cpu'):
    centre = torch.rand(count, 2) * torch.tensor([130.0, 90.0]) - 5
    half = torch.rand(count, 2) * 40
    return torch.cat([centre - half, centre + half], 1).to(device)


@pytest.mark.parametrize('size', [(80, 120), (61, 43), (1, 1)])
@pytest.mark.parametrize('side', [(28, 28), (14, 7)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_equals_mmdet(device, size, side, dtype):
    masks, boxes = torch.rand(30, *side, device=device).to(dtype), random_boxes(30, device)
    boxes[0, 2:] = boxes[0, :2]  # without extent
    found = paste_masks(masks, boxes, size, 0.5)
    expected = pasted_by_mmdet(masks.float(), boxes, size, 0.5)
    assert found.dtype == torch.bool
    # On a GPU, products that are rounded apart, or not, may fall on either side of the threshold.
    assert (found != expected).sum() <= (0 if device == 'cpu' else 1e-5 * found.numel())


@settings(max_examples=30, deadline=None)
@given(
    box=st.tuples(*[st.floats(-30, 60, width=32) for _ in range(4)]),
    threshold=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_any_box(box, threshold):
    masks, boxes = torch.rand(1, 5, 6), torch.tensor([box])
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2])
    found = paste_masks(masks, boxes, (20, 30), threshold)
    assert torch.equal(found, pasted_by_mmdet(masks, boxes, (20, 30), threshold))


def test_no_masks(device):
    boxes = torch.zeros(0, 4, device=device)
    masks = paste_masks(torch.zeros(0, 28, 28, device=device), boxes, (5, 6), 0.5)
    assert masks.shape == (0, 5, 6)


def test_opcheck(device):
    masks, boxes = torch.rand(3, 5, 6, device=device), random_boxes(3, device)
    torch.library.opcheck(torch.ops.kat_mm.paste_masks.default, (masks, boxes, 20, 30, 0.5))


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r'got \(2, 5, 5\) and \(3, 4\)'):
        paste_masks(torch.zeros(2, 5, 5), torch.zeros(3, 4), (5, 5), 0.5)
