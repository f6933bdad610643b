"""Triton kernels of the sums of trigonometric series of attention scores.

As in flash attention (arXiv 2205.14135) the scores exist a tile at a time, in fp32, and backward
computes them again. cos(g s) and sin(g s) come from cos(s) and sin(s) by the identities of angle
sums. Tiles of them are multiplied by the coefficients as matrices, in the dtype of q.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .fourier_sums import LEAST, padded

TILE = 64  # queries, and keys


@triton.jit
def _cos_sin(x, APPROXIMATE: tl.constexpr):
    if APPROXIMATE:
        # The GPU's own functions keep 21 bits within [-pi, pi], to which x is brought.
        turns = tl.floor(x * 0.15915494309189535 + 0.5)
        x = x - turns * 6.28125 - turns * 0.0019353071795864769
        cos = tl.inline_asm_elementwise(
            'cos.approx.f32 $0, $1;', '=f,f', [x], dtype=tl.float32, is_pure=True, pack=1
        )
        sin = tl.inline_asm_elementwise(
            'sin.approx.f32 $0, $1;', '=f,f', [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        cos = tl.cos(x)
        sin = tl.sin(x)
    return cos, sin


@triton.jit
def _tile(pointer, rows, count, columns, width, stride):
    """Loads rows x columns of a matrix, with zeros beyond its count of rows and its width."""
    inside = (rows[:, None] < count) & (columns[None, :] < width)
    return tl.load(pointer + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _sums(
    q, k, c, z, heads, queries, keys, dims,
    q_batch, q_head, q_row, k_batch, k_head, k_row,
    TERMS: tl.constexpr, DIMS: tl.constexpr, RANK: tl.constexpr, SIDE: tl.constexpr,
    APPROXIMATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """z [rows of a tile, RANK], of all keys."""
    batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    rows = tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    d, p = tl.arange(0, DIMS), tl.arange(0, RANK)
    q_tile = _tile(q + batch * q_batch + head * q_head, rows, queries, d, dims, q_row)
    k += batch * k_batch + head * k_head
    c += head * 2 * TERMS * keys * RANK
    total = tl.zeros([SIDE, RANK], tl.float32)
    for first in range(0, keys, SIDE):
        columns = first + tl.arange(0, SIDE)
        k_tile = _tile(k, columns, keys, d, dims, k_row)
        s = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
        cos_1, sin_1 = _cos_sin(s, APPROXIMATE)
        cos, sin = cos_1, sin_1
        for g in tl.static_range(TERMS):
            a = _tile(c + 2 * g * keys * RANK, columns, keys, p, RANK, RANK)
            b = _tile(c + (2 * g + 1) * keys * RANK, columns, keys, p, RANK, RANK)
            total += tl.dot(cos.to(a.dtype), a, input_precision=PRECISION)
            total += tl.dot(sin.to(a.dtype), b, input_precision=PRECISION)
            cos, sin = cos * cos_1 - sin * sin_1, sin * cos_1 + cos * sin_1
    z += tl.program_id(0).to(tl.int64) * queries * RANK
    tl.store(z + rows[:, None] * RANK + p[None, :], total, mask=rows[:, None] < queries)


@triton.jit
def _slopes(s, c, columns, keys, dz_tile, TERMS: tl.constexpr, RANK: tl.constexpr,
            APPROXIMATE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The gradient of scores s [rows, columns], given that of their sums, [rows, RANK]."""
    p = tl.arange(0, RANK)
    cos_1, sin_1 = _cos_sin(s, APPROXIMATE)
    cos, sin = cos_1, sin_1
    ds = tl.zeros_like(s)
    for g in tl.static_range(TERMS):
        a = _tile(c + 2 * g * keys * RANK, columns, keys, p, RANK, RANK)
        b = _tile(c + (2 * g + 1) * keys * RANK, columns, keys, p, RANK, RANK)
        ds -= (g + 1) * sin * tl.dot(dz_tile, tl.trans(a), input_precision=PRECISION)
        ds += (g + 1) * cos * tl.dot(dz_tile, tl.trans(b), input_precision=PRECISION)
        cos, sin = cos * cos_1 - sin * sin_1, sin * cos_1 + cos * sin_1
    return ds


@triton.jit
def _grad_q(
    q, k, c, dz, dq, heads, queries, keys, dims,
    q_batch, q_head, q_row, k_batch, k_head, k_row,
    TERMS: tl.constexpr, DIMS: tl.constexpr, RANK: tl.constexpr, SIDE: tl.constexpr,
    APPROXIMATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of the rows of a tile, over all keys."""
    batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    rows = tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    d, p = tl.arange(0, DIMS), tl.arange(0, RANK)
    q_tile = _tile(q + batch * q_batch + head * q_head, rows, queries, d, dims, q_row)
    dz += tl.program_id(0).to(tl.int64) * queries * RANK
    dz_tile = _tile(dz, rows, queries, p, RANK, RANK)
    k += batch * k_batch + head * k_head
    c += head * 2 * TERMS * keys * RANK
    total = tl.zeros([SIDE, DIMS], tl.float32)
    for first in range(0, keys, SIDE):
        columns = first + tl.arange(0, SIDE)
        k_tile = _tile(k, columns, keys, d, dims, k_row)
        s = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
        ds = _slopes(s, c, columns, keys, dz_tile, TERMS, RANK, APPROXIMATE, PRECISION)
        total += tl.dot(ds.to(k_tile.dtype), k_tile, input_precision=PRECISION)
    dq += tl.program_id(0).to(tl.int64) * queries * dims
    inside = (rows[:, None] < queries) & (d[None, :] < dims)
    tl.store(dq + rows[:, None] * dims + d[None, :], total.to(dq.dtype.element_ty), mask=inside)


@triton.jit
def _grad_k(
    q, k, c, dz, dk, heads, queries, keys, dims,
    q_batch, q_head, q_row, k_batch, k_head, k_row,
    TERMS: tl.constexpr, DIMS: tl.constexpr, RANK: tl.constexpr, SIDE: tl.constexpr,
    APPROXIMATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk of the keys of a tile, over all rows."""
    batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    columns = tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    d, p = tl.arange(0, DIMS), tl.arange(0, RANK)
    k_tile = _tile(k + batch * k_batch + head * k_head, columns, keys, d, dims, k_row)
    dz += tl.program_id(0).to(tl.int64) * queries * RANK
    q += batch * q_batch + head * q_head
    c += head * 2 * TERMS * keys * RANK
    total = tl.zeros([SIDE, DIMS], tl.float32)
    for first in range(0, queries, SIDE):
        rows = first + tl.arange(0, SIDE)
        q_tile = _tile(q, rows, queries, d, dims, q_row)
        dz_tile = _tile(dz, rows, queries, p, RANK, RANK)
        s = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
        ds = _slopes(s, c, columns, keys, dz_tile, TERMS, RANK, APPROXIMATE, PRECISION)
        total += tl.dot(tl.trans(ds).to(q_tile.dtype), q_tile, input_precision=PRECISION)
    dk += tl.program_id(0).to(tl.int64) * keys * dims
    inside = (columns[:, None] < keys) & (d[None, :] < dims)
    tl.store(dk + columns[:, None] * dims + d[None, :], total.to(dk.dtype.element_ty), mask=inside)


@triton.jit
def _grad_c(
    q, k, dz, dc, batches, heads, queries, keys, dims,
    q_batch, q_head, q_row, k_batch, k_head, k_row,
    TERMS: tl.constexpr, DIMS: tl.constexpr, RANK: tl.constexpr, SIDE: tl.constexpr,
    APPROXIMATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Two of the gradients of coefficients [keys of a tile, RANK], over a part of the batch."""
    head, g = tl.program_id(1) // TERMS, tl.program_id(1) % TERMS
    part, parts = tl.program_id(2), tl.num_programs(2)
    columns = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    d, p = tl.arange(0, DIMS), tl.arange(0, RANK)
    da = tl.zeros([SIDE, RANK], tl.float32)
    db = tl.zeros([SIDE, RANK], tl.float32)
    for number in range(part, batches, parts):
        batch = tl.full([], number, tl.int64)
        k_tile = _tile(k + batch * k_batch + head * k_head, columns, keys, d, dims, k_row)
        q_head_of = q + batch * q_batch + head * q_head
        dz_head_of = dz + (batch * heads + head) * queries * RANK
        for first in range(0, queries, SIDE):
            rows = first + tl.arange(0, SIDE)
            q_tile = _tile(q_head_of, rows, queries, d, dims, q_row)
            dz_tile = _tile(dz_head_of, rows, queries, p, RANK, RANK)
            s = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION)
            cos, sin = _cos_sin((g + 1) * s, APPROXIMATE)
            da += tl.dot(cos.to(dz_tile.dtype), dz_tile, input_precision=PRECISION)
            db += tl.dot(sin.to(dz_tile.dtype), dz_tile, input_precision=PRECISION)
    dc += ((part * heads + head) * 2 * TERMS + 2 * g) * keys * RANK
    places = columns[:, None] * RANK + p[None, :]
    tl.store(dc + places, da, mask=columns[:, None] < keys)
    tl.store(dc + keys * RANK + places, db, mask=columns[:, None] < keys)


def _options(q: Tensor, terms: int, rank: int) -> dict:
    return dict(
        TERMS=terms,
        DIMS=max(triton.next_power_of_2(q.shape[-1]), LEAST),
        RANK=rank,
        SIDE=TILE,
        APPROXIMATE=q.is_cuda,
        PRECISION='ieee',
        num_warps=4,
    )


def _packed(coefficients: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns coefficients [H, r, M, 2 G] as [H, 2 G, M, R], R a multiple of the least side."""
    heads, rank, keys, count = coefficients.shape
    packed = coefficients.new_zeros(heads, count, keys, padded(rank), dtype=dtype)
    packed[..., :rank] = coefficients.permute(0, 3, 2, 1)
    return packed


def _strides(x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    x = x if x.stride(-1) == 1 else x.contiguous()
    return x, x.stride()[:3]


def sums(q: Tensor, k: Tensor, coefficients: Tensor) -> Tensor:
    """Computes `kat_mm.attention.fourier_sums.fourier_sums`."""
    batch, heads, queries, dims = q.shape
    keys, count = coefficients.shape[2:]
    c = _packed(coefficients, q.dtype)
    (q, q_strides), (k, k_strides) = _strides(q), _strides(k)
    z = torch.empty(batch, heads, queries, c.shape[-1], dtype=torch.float32, device=q.device)
    with torch.cuda.device_of(q):
        _sums[batch * heads, triton.cdiv(queries, TILE)](
            *(q, k, c, z, heads, queries, keys, dims, *q_strides, *k_strides),
            **_options(q, count // 2, c.shape[-1]),
        )
    return z


def gradients(
    grad: Tensor, q: Tensor, k: Tensor, coefficients: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the gradients of q, k and coefficients, given that of the sums."""
    batch, heads, queries, dims = q.shape
    _, rank, keys, count = coefficients.shape
    c = _packed(coefficients, q.dtype)
    (q, q_strides), (k, k_strides) = _strides(q), _strides(k)
    dz = grad.to(q.dtype).contiguous()
    dq, dk = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    sizes = heads, queries, keys, dims, *q_strides, *k_strides
    options = _options(q, count // 2, c.shape[-1])
    # The batch in as many parts as give a GPU's multiprocessors a few blocks each; the same number
    # on any GPU, so that additions have one order.
    tiles = triton.cdiv(keys, TILE) * heads * count // 2
    parts = min(batch, max(triton.cdiv(512, tiles), 1))
    dc = torch.empty(parts, heads, count, keys, c.shape[-1], dtype=torch.float32, device=q.device)
    with torch.cuda.device_of(q):
        _grad_q[batch * heads, triton.cdiv(queries, TILE)](q, k, c, dz, dq, *sizes, **options)
        _grad_k[batch * heads, triton.cdiv(keys, TILE)](q, k, c, dz, dk, *sizes, **options)
        _grad_c[triton.cdiv(keys, TILE), heads * count // 2, parts](
            q, k, dz, dc, batch, *sizes, **options
        )
    dc = dc.sum(0) if parts > 1 else dc[0]
    return dq, dk, dc[..., :rank].permute(0, 3, 2, 1).to(coefficients.dtype).contiguous()
