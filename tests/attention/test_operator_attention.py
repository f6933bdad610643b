"""The op kat_mm::operator_attention and its kernels, against the scores that they do not store."""

import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from kat_mm.attention.bases import BASES
from kat_mm.attention.karat import KArAt
from kat_mm.attention.operator_attention import is_served, operator_attention
from kat_mm.attention.projections import join_heads, split_heads

BASIS_CONFIGS = [
    dict(type='fourier', grid_size=3),
    dict(type='fourier', grid_size=1),
    dict(type='chebyshev', degree=4),
    dict(type='b_spline', grid_size=4, limit=2.5),
]
SIZES = [  # B, H, N, d, r
    *((2, 3, 70, 24, 12), (1, 2, 5, 64, 1), (3, 1, 64, 48, 20)),
    (5, 2, 197, 64, 12),
]
SINGLE = 2, 2, 1, 9, 3  # a token of an odd number of channels
# What a GPU's kernels run in Triton's interpreter, on a CPU.
INTERPRETED = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from test_operator_attention import BASIS_CONFIGS, SINGLE, SIZES, assert_equal, drawn
from kat_mm.attention.bases import BASES
from kat_mm.attention import operator_kernels as kernels

for basis in map(BASES.build, BASIS_CONFIGS):
    for size in (*SIZES[:3], SINGLE):
        inputs, scales, grad = drawn(basis, *size)
        options = scales, basis.kernel, basis.kernel_parameter
        y, z, u = kernels.forward(*inputs, *options)
        gradients = kernels.gradients(grad, *inputs, z, u, *options)
        assert_equal(basis, inputs, scales, y, gradients, grad, 1e-5)
print('equal')
"""


def drawn(basis, batch, heads, tokens, dims, rank, dtype=torch.float32, device='cpu'):
    torch.manual_seed(0)
    qkv = torch.randn(batch, tokens, 3 * heads * dims, device=device).to(dtype)
    c = torch.randn(heads, rank, tokens, basis.count, device=device)
    w = torch.randn(heads, tokens, rank, device=device)
    grad = torch.randn(batch, tokens, heads * dims, device=device)
    return (qkv, c, w), (dims**-0.5, tokens**-0.5, 1 / tokens), grad


def formula(basis, qkv, c, w, scales):
    q, k, v = split_heads(qkv, len(c))
    z = basis.sums(q @ k.mT * scales[0], c) * scales[1]
    return join_heads(z @ w.mT @ v * scales[2])


def assert_equal(basis, inputs, scales, y, gradients, grad, tolerance):
    """Compares with the formula in fp64, relative to the largest value of each."""
    inputs = [x.detach().double().requires_grad_() for x in inputs]
    wanted = formula(basis, *inputs, scales)
    found = torch.autograd.grad(wanted, inputs, grad.double())
    for one, other in zip((y, *gradients), (wanted, *found), strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max()


def derived(basis, inputs, scales, grad):
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = operator_attention(*inputs, scales, basis)
    return y.detach(), torch.autograd.grad(y, inputs, grad.to(y.dtype))


@pytest.fixture(params=BASIS_CONFIGS, ids=lambda config: f'{config["type"]}')
def basis(request):
    return BASES.build(request.param)


@pytest.mark.parametrize('size', [*SIZES, SINGLE])
def test_equals_the_formula(device, basis, size):
    inputs, scales, grad = drawn(basis, *size, device=device)
    assert is_served(*inputs[:2]) == (device == 'cuda')
    assert_equal(basis, inputs, scales, *derived(basis, inputs, scales, grad), grad, 1e-5)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('size', SIZES)
def test_half_precision(device, basis, size, dtype):
    inputs, scales, grad = drawn(basis, *size, dtype=dtype, device=device)
    y, gradients = derived(basis, inputs, scales, grad)
    assert [g.dtype for g in gradients] == [dtype, torch.float32, torch.float32]
    tolerance = 0.03 if dtype is torch.bfloat16 else 0.004
    assert_equal(basis, inputs, scales, y, gradients, grad, tolerance)


@pytest.mark.parametrize(
    ('tokens', 'channels', 'rank', 'count', 'served'),
    [
        (4096, 384, 12, 6, True),
        (2**20, 64, 12, 6, False),  # more blocks of rows than a grid takes
        (2**20 - 16, 64, 32, 16, True),
        (2**20 - 16, 680, 12, 6, True),
        (2**20 - 16, 684, 12, 6, False),  # 2^31 numbers of an image
    ],
)
def test_kernels_serve_what_they_can_count(tokens, channels, rank, count, served):
    """Offsets within an image are of 32 bits, and grids are limited to 65,535 blocks."""
    with FakeTensorMode():
        qkv = torch.empty(1, tokens, 3 * channels, device='cuda', dtype=torch.bfloat16)
        coefficients = torch.empty(channels // 4, rank, tokens, count, device='cuda')
        assert is_served(qkv, coefficients) == served


def test_shapes_that_do_not_fit():
    """Kernels would read what lies beside the coefficients."""
    basis = BASES.build('fourier')
    (qkv, c, w), scales, _ = drawn(basis, 1, 2, 6, 8, 3)
    for inputs in ((qkv[:, :5], c, w), (qkv, c[:, :, :5], w), (qkv, c, w[:, :5]), (qkv, c[:1], w)):
        with pytest.raises(ValueError, match=r'operator_attention: .*qkv \(1, [56], 48\)'):
            operator_attention(*inputs, scales, basis)
    with pytest.raises(ValueError, match=r'and \[2, 6, r\], got .* \(2, 6, 2\)'):
        operator_attention(qkv, c, w[..., :2], scales, basis)


def test_an_empty_batch(basis):
    inputs, scales, grad = drawn(basis, 0, 2, 6, 3, 2)
    y, gradients = derived(basis, inputs, scales, grad)
    assert y.shape == (0, 6, 6)
    assert [g.shape for g in gradients] == [x.shape for x in inputs]
    assert not any(g.any() for g in gradients[1:])


def test_fp64_and_its_slopes(basis):
    inputs, scales, grad = drawn(basis, 1, 2, 6, 3, 2, dtype=torch.float64)
    inputs = [x.double() for x in inputs]
    assert_equal(basis, inputs, scales, *derived(basis, inputs, scales, grad), grad, 1e-12)


def test_large_scores_keep_their_angle(device):
    basis = BASES.build('fourier')
    inputs, scales, grad = drawn(basis, *SIZES[0], device=device)
    scales = scales[0] * 40, *scales[1:]  # up to about 200
    assert_equal(basis, inputs, scales, *derived(basis, inputs, scales, grad), grad, 2e-4)


def test_gradients_have_the_same_bits_in_each_run(device, basis):
    inputs, scales, grad = drawn(basis, *SIZES[3], dtype=torch.bfloat16, device=device)
    (first, gradients), (second, others) = (derived(basis, inputs, scales, grad) for _ in range(2))
    assert torch.equal(first, second)
    for one, other in zip(gradients, others, strict=True):
        assert torch.equal(one, other)


def test_opcheck(device, basis):
    inputs, scales, _ = drawn(basis, 2, 2, 9, 8, 3, device=device)
    torch.library.opcheck(
        torch.ops.kat_mm.operator_attention.default,
        [*(x.requires_grad_() for x in inputs), scales, basis.kernel, basis.kernel_parameter],
        rtol=1e-3,
        atol=1e-3,
    )


def test_a_second_derivative_raises():
    basis = BASES.build('fourier')
    inputs, scales, _ = drawn(basis, 1, 1, 4, 8, 2)
    qkv = inputs[0].requires_grad_()
    y = operator_attention(*inputs, scales, basis)
    [first] = torch.autograd.grad(y.sum(), qkv, create_graph=True)
    with pytest.raises(NotImplementedError, match='operator_attention_backward'):
        torch.autograd.grad(first.sum(), qkv)


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
@pytest.mark.parametrize('basis', ['fourier', 'chebyshev', 'b_spline'])
@pytest.mark.parametrize('options', [{}, {'window_size': 7}, {'base': 'softmax'}])
def test_attention_by_kernels_is_that_of_chunks(basis, options, monkeypatch):
    torch.manual_seed(0)
    grid = (7, 7) if options.get('window_size') else (10, 12)
    layer = KArAt(128, 2, grid, basis=basis, **options).cuda()
    if layer.gate is not None:
        torch.nn.init.normal_(layer.gate)
    x = torch.randn(2, 120, 128, device='cuda')

    def run():
        layer.zero_grad()
        with torch.autocast('cuda', torch.bfloat16):
            y = layer(x, (10, 12))
        y.float().square().mean().backward()
        return [y, *(p.grad for p in layer.parameters() if p.grad is not None)]

    by_kernels = run()
    monkeypatch.setattr('kat_mm.attention.operator.is_served', lambda *_: False)
    for one, other in zip(by_kernels, run(), strict=True):
        assert (one - other).abs().max() <= 0.04 * other.abs().max()
