"""The torch op kat_mm::operator_attention: Kolmogorov-Arnold attention that stores no scores.

On a GPU it is computed by `operator_kernels.py`, where Triton is installed.
"""

import itertools
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arithmetic import is_symbol
from ..rational.op import library
from .bases import BASES, LinearBasis
from .projections import join_heads, split_heads

LEAST = 16  # side of a matrix product of the kernels
MAX_DIMS, MAX_RANK, MAX_COUNT = 128, 32, 16  # what the kernels hold in registers
MAX_TOKENS = LEAST * 65_535  # of a grid's second axis, with a block for no fewer than LEAST rows
MAX_NUMBERS = 2**31 - 1  # of an image: offsets within it have 32 bits
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def is_served(qkv: Tensor, coefficients: Tensor) -> bool:
    """Tells whether kernels serve a call of `operator_attention`."""
    heads, rank, _, count = coefficients.shape
    return (
        qkv.is_cuda
        and torch.version.hip is None  # the kernels have instructions of NVIDIA's
        and qkv.dtype in DTYPES
        and qkv.numel() > 0
        and qkv.shape[-1] <= 3 * heads * MAX_DIMS
        and rank <= MAX_RANK
        and count <= MAX_COUNT
        and _can_count(qkv.shape[1], qkv.shape[2])
        and _has_triton()
    )


def _can_count(tokens: int, channels: int) -> bool:
    # With the limits of rank and count, the coefficients of a head are fewer than MAX_NUMBERS too.
    return is_symbol(tokens) or (tokens <= MAX_TOKENS and tokens * channels <= MAX_NUMBERS)


@cache
def _has_triton() -> bool:
    return find_spec('triton') is not None


def operator_attention(
    qkv: Tensor, coefficients: Tensor, weight: Tensor, scales: Sequence[float], basis: LinearBasis
) -> Tensor:
    """Computes W Phi(s) v of scores s = q k^T, Phi(s)_p = sum_m sum_i c_pmi f_i(s_m).

    Gradients are the same bits in each run. A second derivative raises, by the op's name.

    Args:
        qkv: [B, N, 3 * H * d].
        coefficients: c of each head, [H, r, N, F].
        weight: W of each head, [H, N, r].
        scales: what scores, coefficients and W are multiplied by.
        basis: has the F functions f_i, and a name in the kernels.

    Returns:
        [B, N, H * d] in the dtype of qkv.

    Raises:
        ValueError: for shapes that do not fit each other.
    """
    _check(qkv, coefficients, weight)
    return torch.ops.kat_mm.operator_attention.default(
        qkv, coefficients, weight, scales, basis.kernel, basis.kernel_parameter
    )[0]


def _check(qkv: Tensor, coefficients: Tensor, weight: Tensor) -> None:
    shapes = [tuple(x.shape) for x in (qkv, coefficients, weight)]
    if any(map(is_symbol, itertools.chain(*shapes))):
        return
    (_, tokens, channels), (heads, rank, keys, _) = shapes[:2]
    if channels % (3 * heads) or keys != tokens or shapes[2] != (heads, tokens, rank):
        raise ValueError(
            'operator_attention: qkv must be [B, N, 3 * H * d], coefficients and weight '
            f'[{heads}, r, {tokens}, F] and [{heads}, {tokens}, r], got qkv {shapes[0]}, '
            f'coefficients {shapes[1]} and weight {shapes[2]}'
        )


def _attention(qkv, coefficients, weight, scales, basis, parameter):
    if is_served(qkv, coefficients):
        from .operator_kernels import forward

        return forward(qkv, coefficients, weight, scales, basis, parameter)
    q, k, v = split_heads(_widened(qkv), len(coefficients))
    c, w = _widened(coefficients) * scales[1], _widened(weight) * scales[2]
    functions = _basis(basis, c, parameter).functions(q @ k.mT * scales[0])
    z = sum(f @ c[..., i].mT for i, f in enumerate(functions))
    u = w.mT @ v
    padding = _padded(c.shape[1]) - c.shape[1]
    parts = join_heads(z @ u), F.pad(z, (0, padding)), F.pad(u, (0, 0, 0, padding))
    return tuple(x.to(qkv.dtype) for x in parts)


def _gradients(grad, qkv, coefficients, weight, z, u, scales, basis, parameter):
    if is_served(qkv, coefficients):
        from .operator_kernels import gradients

        return gradients(grad, qkv, coefficients, weight, z, u, scales, basis, parameter)
    # By hand: autograd does not see into an op.
    heads, rank = coefficients.shape[:2]
    q, k, v = split_heads(_widened(qkv), heads)
    c, w = _widened(coefficients) * scales[1], _widened(weight) * scales[2]
    z, u = _widened(z)[..., :rank], _widened(u)[..., :rank, :]
    dy = grad.to(q.dtype).unflatten(2, (heads, -1)).transpose(1, 2)
    dz, du = dy @ u.mT, z.mT @ dy
    s, known = q @ k.mT * scales[0], _basis(basis, c, parameter)
    ds = sum((dz @ c[..., i]) * slope for i, slope in enumerate(known.slopes(s))) * scales[0]
    dc = torch.stack([(dz.mT @ f).sum(0) for f in known.functions(s)], -1)
    dqkv = torch.stack([ds @ k, ds.mT @ q, w @ du], 2)  # [B, H, 3, N, d]
    dqkv = dqkv.permute(0, 3, 2, 1, 4).flatten(2)
    found = dqkv, dc * scales[1], (v @ du.mT).sum(0) * scales[2]
    return tuple(
        x.to(y.dtype).contiguous() for x, y in zip(found, (qkv, coefficients, weight), strict=True)
    )


def _basis(name: str, coefficients: Tensor, parameter: float) -> LinearBasis:
    return BASES[name].of_kernel(coefficients.shape[-1], parameter)


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype is torch.float64 else x.float()


def _padded(rank: int) -> int:
    """Returns the number of sums that the kernels make of r: a power of 2, zeros behind r."""
    return max(1 << (rank - 1).bit_length(), LEAST)


TENSORS = 'Tensor qkv, Tensor coefficients, Tensor weight'
OPTIONS = 'float[] scales, str basis, float parameter'
for name, schema, function in (
    (
        'operator_attention',
        f'({TENSORS}, {OPTIONS}) -> (Tensor, Tensor, Tensor)',
        _attention,
    ),
    (
        'operator_attention_backward',
        f'(Tensor grad, {TENSORS}, Tensor z, Tensor u, {OPTIONS}) -> (Tensor, Tensor, Tensor)',
        _gradients,
    ),
):
    library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, function, 'CompositeExplicitAutograd')


@torch.library.register_fake('kat_mm::operator_attention', lib=library)
def _fake(qkv, coefficients, weight, scales, basis, parameter):
    (batch, tokens, channels), (heads, rank) = qkv.shape, coefficients.shape[:2]
    rank, dims = _padded(rank), channels // (3 * heads)
    return (
        qkv.new_empty(batch, tokens, heads * dims),
        qkv.new_empty(batch, heads, tokens, rank),
        qkv.new_empty(batch, heads, rank, dims),
    )


@torch.library.register_fake('kat_mm::operator_attention_backward', lib=library)
def _backward_fake(grad, qkv, coefficients, weight, z, u, scales, basis, parameter):
    return tuple(x.new_empty(x.shape) for x in (qkv, coefficients, weight))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.scales, ctx.basis, ctx.parameter = inputs
    _, z, u = output
    ctx.mark_non_differentiable(z, u)
    ctx.save_for_backward(*tensors, z, u)


def _backward(ctx, grad, *_):
    grads = torch.ops.kat_mm.operator_attention_backward.default(
        grad, *ctx.saved_tensors, ctx.scales, ctx.basis, ctx.parameter
    )
    return *grads, None, None, None


torch.library.register_autograd(
    'kat_mm::operator_attention', _backward, setup_context=_setup_context, lib=library
)


def _refuse(ctx, *grads):
    raise NotImplementedError('kat_mm::operator_attention_backward has no derivatives')


torch.library.register_autograd('kat_mm::operator_attention_backward', _refuse, lib=library)
