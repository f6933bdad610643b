"""The runs of masks, against those that pycocotools finds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kat_mm.detection import run_lengths

coco_masks = pytest.importorskip('pycocotools.mask')


def encoded(masks):
    size = list(masks.shape[1:])
    runs = [dict(counts=run, size=size) for run in run_lengths(masks)]
    return coco_masks.frPyObjects(runs, *size)


def encoded_by_coco(masks):
    return [coco_masks.encode(np.asfortranarray(mask.cpu().numpy(), np.uint8)) for mask in masks]


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    density=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_equals_pycocotools(shape, density, seed):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(shape, generator=generator) < density
    assert encoded(masks) == encoded_by_coco(masks)


def test_large_masks(device):
    masks = torch.zeros(5, 480, 640, dtype=torch.bool, device=device)
    for i, mask in enumerate(masks):
        mask[i * 50 : 200 + i * 70, i * 100 : 300 + i * 80] = True
    masks[1] ^= torch.rand(480, 640, device=device) < 0.01
    assert encoded(masks) == encoded_by_coco(masks)
    assert encoded(masks.transpose(1, 2)) == encoded_by_coco(masks.transpose(1, 2))


def test_no_masks(device):
    assert run_lengths(torch.zeros(0, 5, 6, device=device)) == []
    assert run_lengths(torch.zeros(2, 0, 6, device=device)) == [0, 0]


def test_a_shape_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r'masks must be \[N, H, W\], got \(5, 6\)'):
        run_lengths(torch.zeros(5, 6))
