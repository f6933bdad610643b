"""Resizing, cross entropy and accuracy in one op, against the three."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kat_mm.segmentation import upsample_cross_entropy

IGNORED = 255


def problem(shape, size, device='cpu', dtype=torch.float64, weighted=True):
    images, classes, *_ = shape
    logits = (3 * torch.randn(shape, dtype=torch.float64)).to(device, dtype).requires_grad_()
    labels = torch.randint(classes, (images, *size), device=device)
    labels[torch.rand(labels.shape, device=device) < 0.2] = IGNORED
    weight = torch.rand(classes, device=device) if weighted else None
    return logits, labels, weight


def plain(logits, labels, weight, align_corners):
    wide = logits if logits.dtype == torch.float64 else logits.float()
    resized = F.interpolate(wide, labels.shape[1:], mode='bilinear', align_corners=align_corners)
    weight = None if weight is None else weight.to(wide.dtype)
    loss = F.cross_entropy(resized, labels, weight, reduction='sum', ignore_index=IGNORED)
    counts = labels != IGNORED
    right = (resized.argmax(1) == labels)[counts].sum()
    total = counts.sum() if weight is None else weight[labels[counts]].sum()
    return loss, (total.double(), counts.sum().double(), right.double())


def check(logits, labels, weight, align_corners, rtol=1e-9, grad_rtol=1e-9):
    expected, sums = plain(logits, labels, weight, align_corners)
    (grad,) = torch.autograd.grad(2 * expected, logits)
    loss, statistics = upsample_cross_entropy(logits, labels, weight, IGNORED, align_corners)
    (found,) = torch.autograd.grad(2 * loss, logits)
    torch.testing.assert_close(loss, expected, rtol=rtol, atol=1e-6)
    for mine, theirs in zip(statistics, sums, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)
    assert found.dtype == logits.dtype
    scale = grad.double().abs().max().clamp_min(1e-3)
    assert ((found - grad).double().abs().max() / scale).item() < grad_rtol


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, n) for n in (3, 20, 6, 7))),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    align_corners=st.booleans(),
    weighted=st.booleans(),
    channels_last=st.booleans(),
)
def test_equals_the_three_ops(shape, size, align_corners, weighted, channels_last):
    logits, labels, weight = problem(shape, size, weighted=weighted)
    if channels_last:
        logits = logits.detach().to(memory_format=torch.channels_last).requires_grad_()
    check(logits, labels, weight, align_corners)


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize(
    ('shape', 'size'),
    [
        ((2, 150, 16, 20), (64, 80)),
        ((2, 19, 8, 5), (128, 80)),
        ((1, 11, 20, 20), (80, 80)),
        ((2, 3, 9, 7), (9, 7)),
        ((2, 33, 17, 30), (9, 13)),
        ((1, 8, 1, 1), (37, 5)),
        ((1, 5, 6, 5), (31, 1)),
    ],
)
def test_shapes(device, shape, size, align_corners):
    for weighted in (False, True):
        check(*problem(shape, size, device, weighted=weighted), align_corners)
        if device == 'cuda':
            check(*problem(shape, size, device, torch.float32, weighted), align_corners, 1e-5, 1e-4)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_rounds_the_gradient_alone(device, dtype):
    logits, labels, weight = problem((2, 21, 16, 16), (64, 64), device, dtype)
    check(logits, labels, weight, False, 1e-5, 0.02)


def test_two_runs_have_the_same_bits(device):
    logits, labels, weight = problem((2, 40, 32, 32), (128, 128), device, torch.float32)
    runs = []
    for _ in range(3):
        loss, _ = upsample_cross_entropy(logits, labels, weight, IGNORED)
        runs.append((loss, *torch.autograd.grad(loss, logits)))
    for loss, grad in runs[1:]:
        assert torch.equal(loss, runs[0][0])
        assert torch.equal(grad, runs[0][1])


def test_all_ignored(device):
    logits, labels, weight = problem((2, 4, 3, 3), (12, 12), device, torch.float32)
    loss, statistics = upsample_cross_entropy(logits, labels.fill_(IGNORED), weight, IGNORED)
    assert loss == 0
    assert [value.item() for value in statistics] == [0, 0, 0]
    assert not torch.autograd.grad(loss, logits)[0].any()


def test_gradcheck():
    logits, labels, weight = problem((1, 3, 3, 4), (7, 9))
    assert torch.autograd.gradcheck(
        lambda x: upsample_cross_entropy(x, labels, weight, IGNORED)[0], logits
    )


def test_opcheck(device):
    logits, labels, weight = problem((2, 3, 3, 4), (7, 9), device, torch.float32)
    op = torch.ops.kat_mm.upsample_cross_entropy.default
    torch.library.opcheck(op, (logits, labels, weight, IGNORED, False))


@pytest.mark.parametrize(
    ('logits', 'labels', 'weight', 'error', 'message'),
    [
        (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3).long(), None, ValueError, 'logits must be'),
        (torch.zeros(1, 2, 3, 3), torch.zeros(2, 6, 6).long(), None, ValueError, r'\(2, 6, 6\)'),
        (torch.zeros(1, 2, 3, 3), torch.zeros(1, 6, 6), None, TypeError, 'must be int64'),
        (
            torch.zeros(1, 2, 3, 3),
            torch.zeros(1, 6, 6).long(),
            torch.ones(3),
            ValueError,
            r'\(3,\)',
        ),
    ],
)
def test_errors(logits, labels, weight, error, message):
    with pytest.raises(error, match=message):
        upsample_cross_entropy(logits, labels, weight)
