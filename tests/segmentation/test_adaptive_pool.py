"""Adaptive average pooling, against torch's."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from kat_mm.segmentation import adaptive_avg_pool2d

SIZES = [((16, 16), (6, 6)), ((16, 16), (3, 2)), ((17, 23), (1, 1)), ((5, 7), (8, 9))]


@pytest.mark.parametrize(('old', 'new'), SIZES)
@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)]
)
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_equals_torch(device, old, new, dtype, tolerance, layout):
    x = torch.randn(2, 12, *old, device=device).to(dtype, memory_format=layout).requires_grad_()
    wide = x.detach().double().requires_grad_()
    y, expected = adaptive_avg_pool2d(x, new), F.adaptive_avg_pool2d(wide, new)
    assert torch.equal(y, F.adaptive_avg_pool2d(x, new))
    grad = torch.randn_like(y)
    (found,) = torch.autograd.grad(y, x, grad)
    expected.backward(grad.double())
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=layout)
    error = (found.double() - wide.grad).abs().max() / wide.grad.abs().max()
    assert error.item() < tolerance


def test_runs_where_algorithms_must_be_deterministic(device, monkeypatch):
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    x = torch.randn(2, 64, 16, 16, device=device, requires_grad=True)
    y = adaptive_avg_pool2d(x, (6, 6))
    grad = torch.randn_like(y)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (torch.autograd.grad(y, x, grad, retain_graph=True)[0] for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first, second)


def test_gradcheck():
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: adaptive_avg_pool2d(x, (3, 2)), x)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_gradients_of_gradients(layout):
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: adaptive_avg_pool2d(x, (3, 2)), x)


def _tangent(f, x):
    return torch.func.jvp(f, (x,), (x.cos(),))[1]


@pytest.mark.parametrize(
    'transform',
    [
        lambda f: torch.func.grad(lambda x: f(x).square().sum()),
        torch.func.vmap,
        lambda f: torch.func.vmap(torch.func.grad(lambda x: f(x).square().sum())),
        lambda f: lambda x: _tangent(f, x),
        torch.func.jacrev,
    ],
    ids=['grad', 'vmap', 'grad of each', 'jvp', 'jacrev'],
)
def test_transforms(device, transform):
    x = torch.randn(2, 3, 5, 4, device=device)

    def result(pool):
        return transform(lambda x: pool(x[None] if x.dim() == 3 else x, (3, 2)))(x)

    torch.testing.assert_close(result(adaptive_avg_pool2d), result(F.adaptive_avg_pool2d))


def test_tangents(device):
    x, tangent = torch.randn(2, 1, 2, 5, 4, device=device)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, tangent)
        found = forward_ad.unpack_dual(adaptive_avg_pool2d(dual, (3, 2))).tangent
    torch.testing.assert_close(found, F.adaptive_avg_pool2d(tangent, (3, 2)))


def test_compiles():
    compiled = torch.compile(
        lambda x: adaptive_avg_pool2d(x, (3, 2)), backend='aot_eager', fullgraph=True
    )
    x = torch.randn(1, 2, 5, 4, requires_grad=True)
    torch.testing.assert_close(compiled(x), F.adaptive_avg_pool2d(x, (3, 2)))
