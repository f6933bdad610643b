"""Labels of resized logits, against argmax of torch's resizing."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kat_mm.segmentation import upsample_argmax

CHAINS = [
    dict(size=(32, 44)),
    dict(size=(5, 7)),
    dict(size=(33, 47), via=(32, 44)),
    dict(size=(32, 44), via=(32, 44)),
    dict(size=(21, 30), via=(40, 48), window=(2, 3, 35, 41)),
    dict(size=(35, 41), via=(40, 48), window=(0, 7, 35, 41)),
]


def expected(logits, size, align_corners, via=None, window=None):
    """Computes what mmseg does: resizes to `via`, cuts, and resizes to `size`."""
    options = dict(mode='bilinear', align_corners=align_corners)
    if via:
        logits = F.interpolate(logits, via, **options)
    if window:
        top, left, height, width = window
        logits = logits[:, :, top : top + height, left : left + width]
    return F.interpolate(logits, size, **options)


def assert_labels(labels, resized, tolerance=0.0):
    """The labels are those of the largest logit, or of one that is as large up to a tolerance."""
    assert labels.dtype == torch.int64
    assert labels.shape == (resized.shape[0], *resized.shape[2:])
    if not tolerance:
        assert torch.equal(labels, resized.argmax(1))
    chosen = resized.gather(1, labels[:, None])[:, 0]
    assert (resized.amax(1) - chosen).max().item() <= tolerance


@pytest.mark.parametrize('chain', CHAINS)
@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_labels_are_those_of_resizing_as_written(device, chain, align_corners, layout):
    logits = torch.randn(2, 19, 8, 11, device=device).to(memory_format=layout)
    labels = upsample_argmax(logits, align_corners=align_corners, **chain)
    resized = expected(logits, align_corners=align_corners, **chain)
    assert_labels(labels, resized, 0.0 if device == 'cpu' else 2e-6)
    same = (labels == resized.argmax(1)).double().mean()
    assert same.item() > 0.9999


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_resized_in_fp32_or_better(device, dtype):
    logits = torch.randn(1, 7, 6, 5, device=device).to(dtype)
    wide = logits.double() if dtype == torch.float64 else logits.float()
    labels = upsample_argmax(logits, (24, 21), via=(18, 15))
    assert_labels(labels, expected(wide, (24, 21), False, via=(18, 15)), 2e-6)


def test_of_equal_classes_the_first_counts_and_nan_before_all(device):
    logits = torch.zeros(1, 9, 4, 4, device=device)
    assert upsample_argmax(logits, (8, 8)).eq(0).all()
    logits[:, 5] = 1
    logits[:, 7] = 1
    assert upsample_argmax(logits, (8, 8)).eq(5).all()
    logits[:, 6] = torch.nan
    assert upsample_argmax(logits, (8, 8)).eq(6).all()


def test_classes_are_taken_some_at_a_time(monkeypatch):
    logits = torch.randn(2, 23, 5, 6)
    whole = upsample_argmax(logits, (20, 24))
    monkeypatch.setitem(upsample_argmax.__globals__, 'CHUNK', 4 * 2 * 20 * 24)
    assert torch.equal(upsample_argmax(logits, (20, 24)), whole)


sides = st.integers(1, 12)


@settings(deadline=None, max_examples=40)
@given(sides, sides, sides, sides, st.integers(1, 6), st.booleans(), st.integers(0, 999))
def test_any_size(h, w, height, width, classes, align_corners, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, classes, h, w, generator=generator)
    labels = upsample_argmax(logits, (height, width), align_corners)
    assert_labels(labels, expected(logits, (height, width), align_corners))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(logits=torch.zeros(3, 4, 4)), r'logits must be \[B, C, h, w\], got \(3, 4, 4\)'),
        (dict(window=(0, 0, 5, 4)), r'the window \(0, 0, 5, 4\) must lie within \(4, 4\)'),
        (dict(window=(-1, 0, 4, 4)), 'must lie within'),
        (dict(size=(0, 4)), 'sizes be above 0'),
    ],
)
def test_what_does_not_fit_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        upsample_argmax(**{'logits': torch.zeros(1, 2, 4, 4), 'size': (8, 8), **kwargs})


def test_opcheck():
    op = torch.ops.kat_mm.upsample_argmax.default
    torch.library.opcheck(op, (torch.randn(1, 3, 4, 5), 8, 10, 1, 0, 6, 9, 7, 7, False))
