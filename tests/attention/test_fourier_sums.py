"""The op kat_mm::fourier_sums and its Triton kernels, against the scores that they do not store."""

import os
import subprocess
import sys

import pytest
import torch

from kat_mm.attention.bases import BASES
from kat_mm.attention.fourier_sums import fourier_sums, is_served, padded
from kat_mm.attention.karat import KArAt

SIZES = [  # B, H, N, M, d, r, G
    *((2, 3, 70, 70, 24, 12, 3), (1, 2, 5, 130, 64, 1, 1), (3, 1, 64, 64, 48, 20, 2)),
    (5, 2, 197, 197, 64, 12, 3),
]
# What a GPU's kernels run in Triton's interpreter, on a CPU.
INTERPRETED = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from test_fourier_sums import SIZES, assert_equal, drawn
from kat_mm.attention import fourier_kernels as kernels

for size in SIZES[:3]:
    inputs, grad = drawn(*size)
    z = kernels.sums(*inputs)
    assert_equal(inputs, z, kernels.gradients(grad, *inputs), grad, 1e-5)
print('equal')
"""


def drawn(batch, heads, queries, keys, dims, rank, terms, dtype=torch.float32, device='cpu'):
    torch.manual_seed(0)
    q = torch.randn(batch, heads, queries, dims, device=device).to(dtype) * dims**-0.5
    k = torch.randn(batch, keys, heads, dims, device=device).to(dtype).transpose(1, 2)
    c = torch.randn(heads, rank, keys, 2 * terms, device=device)
    grad = torch.randn(batch, heads, queries, padded(rank), device=device)
    grad[..., rank:] = 0
    return (q, k, c), grad


def assert_equal(inputs, z, gradients, grad, tolerance):
    """Compares with the formula in fp64, relative to the largest value of each."""
    q, k, c = (x.detach().double().requires_grad_() for x in inputs)
    basis = BASES.build(dict(type='fourier', grid_size=c.shape[-1] // 2))
    wanted = basis.sums(q @ k.mT, c)
    rank = wanted.shape[-1]
    assert not z[..., rank:].any()
    found = torch.autograd.grad(wanted, (q, k, c), grad[..., :rank].double())
    for one, other in zip((z[..., :rank], *gradients), (wanted, *found), strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max()


def derived(inputs, grad):
    inputs = [x.detach().requires_grad_() for x in inputs]
    z = fourier_sums(*inputs)
    return z.detach(), torch.autograd.grad(z, inputs, grad)


@pytest.mark.parametrize('size', SIZES)
def test_equals_the_formula(device, size):
    inputs, grad = drawn(*size, device=device)
    assert is_served(inputs[0], inputs[2]) == (device == 'cuda')
    assert_equal(inputs, *derived(inputs, grad), grad, 1e-5)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('size', SIZES)
def test_half_precision(device, size, dtype):
    inputs, grad = drawn(*size, dtype=dtype, device=device)
    z, gradients = derived(inputs, grad)
    assert [g.dtype for g in gradients] == [dtype, dtype, torch.float32]
    assert_equal(inputs, z, gradients, grad, 0.02 if dtype is torch.bfloat16 else 0.003)


def test_large_scores_keep_their_angle(device):
    inputs, grad = drawn(*SIZES[0], device=device)
    inputs = (inputs[0] * 40, *inputs[1:])  # up to about 150
    assert_equal(inputs, *derived(inputs, grad), grad, 2e-4)


def test_gradients_have_the_same_bits_in_each_run(device):
    inputs, grad = drawn(*SIZES[3], dtype=torch.bfloat16, device=device)
    (first, gradients), (second, others) = derived(inputs, grad), derived(inputs, grad)
    assert torch.equal(first, second)
    for one, other in zip(gradients, others, strict=True):
        assert torch.equal(one, other)


def test_opcheck(device):
    inputs, _ = drawn(2, 2, 9, 9, 8, 3, 2, device=device)
    torch.library.opcheck(
        torch.ops.kat_mm.fourier_sums.default,
        [x.requires_grad_() for x in inputs],
        rtol=1e-3,
        atol=1e-3,
    )


def test_a_second_derivative_raises():
    inputs, _ = drawn(1, 1, 4, 4, 8, 2, 1)
    q = inputs[0].requires_grad_()
    [first] = torch.autograd.grad(fourier_sums(*inputs).sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match='fourier_sums_backward'):
        torch.autograd.grad(first.sum(), q)


def test_kernels_in_the_interpreter():
    pytest.importorskip('triton')
    run = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', INTERPRETED, os.path.dirname(__file__)],
        env={**os.environ, 'TRITON_INTERPRET': '1'},
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip() == 'equal', run.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('options', [{}, {'window_size': 7}, {'base': 'softmax'}])
def test_attention_by_kernels_is_that_of_chunks(options, monkeypatch):
    torch.manual_seed(0)
    grid = (7, 7) if options.get('window_size') else (10, 12)
    layer = KArAt(128, 2, grid, **options).cuda()
    x = torch.randn(2, 120, 128, device='cuda')

    def run():
        layer.zero_grad()
        with torch.autocast('cuda', torch.bfloat16):
            y = layer(x, (10, 12))
        y.float().square().mean().backward()
        return [y, *(p.grad for p in layer.parameters() if p.grad is not None)]

    by_kernels = run()
    monkeypatch.setattr('kat_mm.attention.bases.fourier.is_served', lambda *_: False)
    for one, other in zip(by_kernels, run(), strict=True):
        assert (one - other).abs().max() <= 0.04 * other.abs().max()
