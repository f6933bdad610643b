"""Bilinear resizing, against torch's."""

import pytest
import torch
import torch.nn.functional as F

from kat_mm.segmentation import upsample_bilinear

SIZES = [
    ((8, 10), (16, 20)),
    ((5, 7), (13, 29)),
    ((16, 16), (128, 128)),
    ((9, 6), (4, 4)),
    ((1, 3), (8, 8)),
]


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize(('old', 'new'), SIZES)
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ('dtype', 'tolerance'),
    [(torch.float64, 1e-11), (torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)],
)
def test_equals_torch(device, old, new, align_corners, layout, dtype, tolerance):
    x = torch.randn(2, 12, *old, device=device).to(dtype, memory_format=layout).requires_grad_()
    wide = x.detach().double().requires_grad_()
    y = upsample_bilinear(x, new, align_corners)
    expected = F.interpolate(wide, new, mode='bilinear', align_corners=align_corners)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=layout)
    grad = torch.randn(y.shape, device=device).to(dtype, memory_format=layout)
    y.backward(grad)
    expected.backward(grad.double())
    for found, wanted in ((y, expected), (x.grad, wide.grad)):
        error = (found.double() - wanted).abs().max() / wanted.abs().max()
        assert error.item() < tolerance


def test_the_gradient_has_the_same_bits_in_each_run(device):
    x = torch.randn(2, 64, 32, 32, device=device, requires_grad=True)
    y = upsample_bilinear(x, (128, 128))
    grad = torch.randn_like(y)
    first, second = (torch.autograd.grad(y, x, grad, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_opcheck_and_gradcheck():
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(torch.ops.kat_mm.upsample_bilinear.default, (x, 5, 7, False))
    assert torch.autograd.gradcheck(lambda x: upsample_bilinear(x, (5, 7)), x)
