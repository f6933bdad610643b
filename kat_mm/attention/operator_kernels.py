"""Triton kernels of attention by sums of functions of its scores, and of its gradients.

As in flash attention (arXiv 2205.14135) the scores exist a tile at a time, in fp32, and backward
computes them again. Tiles of function values are multiplied by the coefficients as matrices, in the
dtype of the queries. All sums have one order, whatever the GPU.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .kernel_functions import first_state, next_state, slope_of, value_of

LEAST = 16  # side of a matrix product
# (rows, columns) of a tile of scores and warps of a block: the fastest on an H100 for 197 tokens.
FORWARD = 64, 32, 4
GRAD_QUERIES = 64, 32, 4
GRAD_KEYS = 32, 64, 4
BLOCKS = 512  # that give a GPU's multiprocessors a few each


@triton.jit
def _tile(pointer, rows, count, columns, width, stride):
    """Loads rows x columns of a matrix, with zeros beyond its count of rows and its width."""
    inside = (rows[:, None] < count) & (columns[None, :] < width)
    return tl.load(pointer + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _store(pointer, x, rows, count, columns, width, stride):
    inside = (rows[:, None] < count) & (columns[None, :] < width)
    place = pointer + rows[:, None] * stride + columns[None, :]
    tl.store(place, x.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _forward(
    qkv, c, y, z, u, heads, tokens, dims, scale, parameter,
    BASIS: tl.constexpr, COUNT: tl.constexpr, DIMS: tl.constexpr, RANK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    APPROXIMATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """u = W^T v of all tokens, z = Phi(s) and y = z u of the rows of a tile."""
    pair = tl.program_id(0).to(tl.int64)
    batch, head = pair // heads, pair % heads
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    d, p = tl.arange(0, DIMS), tl.arange(0, RANK)
    channels = heads * dims
    stride = 3 * channels
    q = qkv + batch * tokens * stride + head * dims
    k, v = q + channels, q + 2 * channels
    c += head * (COUNT + 1) * tokens * RANK
    q_tile = _tile(q, rows, tokens, d, dims, stride)
    z_tile = tl.zeros([ROWS, RANK], tl.float32)
    u_tile = tl.zeros([RANK, DIMS], tl.float32)
    for start in range(0, tokens, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        k_tile = _tile(k, columns, tokens, d, dims, stride)
        s = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * scale
        state = first_state(s, parameter, BASIS, COUNT, APPROXIMATE)
        for i in tl.static_range(COUNT):
            c_tile = _tile(c + i * tokens * RANK, columns, tokens, p, RANK, RANK)
            f = value_of(i, state, BASIS)
            z_tile += tl.dot(f.to(c_tile.dtype), c_tile, input_precision=PRECISION)
            state = next_state(i, state, BASIS)
        w_tile = _tile(c + COUNT * tokens * RANK, columns, tokens, p, RANK, RANK)
        v_tile = _tile(v, columns, tokens, d, dims, stride)
        u_tile += tl.dot(tl.trans(w_tile), v_tile, input_precision=PRECISION)
    z_tile = z_tile.to(q_tile.dtype)
    u_tile = u_tile.to(q_tile.dtype)
    y_tile = tl.dot(z_tile, u_tile, input_precision=PRECISION)
    _store(y + batch * tokens * channels + head * dims, y_tile, rows, tokens, d, dims, channels)
    _store(z + pair * tokens * RANK, z_tile, rows, tokens, p, RANK, RANK)
    if tl.program_id(1) == 0:
        _store(u + pair * RANK * dims, u_tile, p, RANK, d, dims, dims)


@triton.jit
def _grad_queries(
    qkv, c, u, dy, dqkv, heads, tokens, dims, scale, parameter,
    BASIS: tl.constexpr, COUNT: tl.constexpr, DIMS: tl.constexpr, RANK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    APPROXIMATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of the rows of a tile, over all keys."""
    pair = tl.program_id(0).to(tl.int64)
    batch, head = pair // heads, pair % heads
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    d, p = tl.arange(0, DIMS), tl.arange(0, RANK)
    channels = heads * dims
    stride = 3 * channels
    place = batch * tokens * stride + head * dims
    q, k = qkv + place, qkv + place + channels
    c += head * (COUNT + 1) * tokens * RANK
    q_tile = _tile(q, rows, tokens, d, dims, stride)
    u_tile = _tile(u + pair * RANK * dims, p, RANK, d, dims, dims)
    dy += batch * tokens * channels + head * dims
    dy_tile = _tile(dy, rows, tokens, d, dims, channels)
    dz = tl.dot(dy_tile, tl.trans(u_tile), input_precision=PRECISION).to(q_tile.dtype)
    dq = tl.zeros([ROWS, DIMS], tl.float32)
    for start in range(0, tokens, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        k_tile = _tile(k, columns, tokens, d, dims, stride)
        s = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * scale
        state = first_state(s, parameter, BASIS, COUNT, APPROXIMATE)
        ds = tl.zeros([ROWS, COLUMNS], tl.float32)
        for i in tl.static_range(COUNT):
            c_tile = _tile(c + i * tokens * RANK, columns, tokens, p, RANK, RANK)
            df = tl.dot(dz, tl.trans(c_tile), input_precision=PRECISION)
            ds += slope_of(i, state, BASIS) * df
            state = next_state(i, state, BASIS)
        dq += tl.dot(ds.to(k_tile.dtype), k_tile, input_precision=PRECISION)
    _store(dqkv + place, dq * scale, rows, tokens, d, dims, stride)


@triton.jit
def _grad_keys(
    qkv, c, z, u, dy, dqkv, dc, batches, heads, tokens, dims, scale, parameter,
    BASIS: tl.constexpr, COUNT: tl.constexpr, DIMS: tl.constexpr, RANK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    APPROXIMATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of the keys of a tile, over all rows; dc and dw of them, over a part of the batch.

    Tiles are [COLUMNS, ROWS], those of the other kernels turned round.
    """
    head, part = tl.program_id(1).to(tl.int64), tl.program_id(2)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    d, p = tl.arange(0, DIMS), tl.arange(0, RANK)
    channels = heads * dims
    stride = 3 * channels
    c += head * (COUNT + 1) * tokens * RANK
    w_tile = _tile(c + COUNT * tokens * RANK, columns, tokens, p, RANK, RANK)
    dw = tl.zeros([COLUMNS, RANK], tl.float32)
    dcs = ()
    for _ in tl.static_range(COUNT):
        dcs = dcs + (tl.zeros([COLUMNS, RANK], tl.float32),)  # noqa: RUF005
    for number in range(part, batches, tl.num_programs(2)):
        batch = tl.full([], number, tl.int64)
        place = batch * tokens * stride + head * dims
        k_tile = _tile(qkv + place + channels, columns, tokens, d, dims, stride)
        pair = batch * heads + head
        u_tile = _tile(u + pair * RANK * dims, p, RANK, d, dims, dims)
        dk = tl.zeros([COLUMNS, DIMS], tl.float32)
        du = tl.zeros([RANK, DIMS], tl.float32)
        for start in range(0, tokens, ROWS):
            rows = start + tl.arange(0, ROWS)
            q_tile = _tile(qkv + place, rows, tokens, d, dims, stride)
            dy_place = batch * tokens * channels + head * dims
            dy_tile = _tile(dy + dy_place, rows, tokens, d, dims, channels)
            z_tile = _tile(z + pair * tokens * RANK, rows, tokens, p, RANK, RANK)
            du += tl.dot(tl.trans(z_tile), dy_tile, input_precision=PRECISION)
            dz = tl.dot(dy_tile, tl.trans(u_tile), input_precision=PRECISION).to(q_tile.dtype)
            s = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION) * scale
            state = first_state(s, parameter, BASIS, COUNT, APPROXIMATE)
            ds = tl.zeros([COLUMNS, ROWS], tl.float32)
            added = ()
            for i in tl.static_range(COUNT):
                c_tile = _tile(c + i * tokens * RANK, columns, tokens, p, RANK, RANK)
                df = tl.dot(c_tile, tl.trans(dz), input_precision=PRECISION)
                ds += slope_of(i, state, BASIS) * df
                f = value_of(i, state, BASIS).to(dz.dtype)
                dc_tile = dcs[i] + tl.dot(f, dz, input_precision=PRECISION)
                added = added + (dc_tile,)  # noqa: RUF005
                state = next_state(i, state, BASIS)
            dcs = added
            dk += tl.dot(ds.to(q_tile.dtype), q_tile, input_precision=PRECISION)
        du = du.to(k_tile.dtype)
        v_tile = _tile(qkv + place + 2 * channels, columns, tokens, d, dims, stride)
        dw += tl.dot(v_tile, tl.trans(du), input_precision=PRECISION)
        dv = tl.dot(w_tile, du, input_precision=PRECISION)
        _store(dqkv + place + channels, dk * scale, columns, tokens, d, dims, stride)
        _store(dqkv + place + 2 * channels, dv, columns, tokens, d, dims, stride)
    dc += (part * heads + head) * (COUNT + 1) * tokens * RANK
    for i in tl.static_range(COUNT):
        _store(dc + i * tokens * RANK, dcs[i], columns, tokens, p, RANK, RANK)
    _store(dc + COUNT * tokens * RANK, dw, columns, tokens, p, RANK, RANK)


def _options(qkv: Tensor, packed: Tensor, basis: str, tile: tuple[int, int, int]) -> dict:
    heads, count, _, rank = packed.shape
    dims = qkv.shape[-1] // (3 * heads)
    rows, columns, warps = tile
    return dict(
        BASIS=basis,
        COUNT=count - 1,
        DIMS=max(triton.next_power_of_2(dims), LEAST),
        RANK=rank,
        ROWS=rows,
        COLUMNS=columns,
        APPROXIMATE=qkv.is_cuda,
        PRECISION=_precision(qkv),
        num_warps=warps,
    )


def _precision(qkv: Tensor) -> str:
    """Returns how matrices of fp32 are multiplied; three products of tf32 keep 21 bits."""
    if qkv.is_cuda and torch.cuda.get_device_capability(qkv.device) >= (8, 0):
        return 'tf32x3'
    return 'ieee'


def _pack(
    coefficients: Tensor, weight: Tensor, scales: Sequence[float], dtype: torch.dtype
) -> Tensor:
    """Returns coefficients [H, r, M, F] and W [H, M, r] as [H, F + 1, M, R], zeros behind r.

    They are multiplied by their scales.
    """
    heads, rank, keys, count = coefficients.shape
    width = max(triton.next_power_of_2(rank), LEAST)
    packed = coefficients.new_zeros(heads, count + 1, keys, width, dtype=dtype)
    torch.mul(coefficients.permute(0, 3, 2, 1), scales[1], out=packed[:, :count, :, :rank])
    torch.mul(weight, scales[2], out=packed[:, count, :, :rank])
    return packed


def forward(
    qkv: Tensor,
    coefficients: Tensor,
    weight: Tensor,
    scales: Sequence[float],
    basis: str,
    parameter: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes y, and the z and u that the gradients take; see `operator_attention`."""
    qkv = qkv.contiguous()
    packed = _pack(coefficients, weight, scales, qkv.dtype)
    (batch, tokens, _), (heads, _, _, rank) = qkv.shape, packed.shape
    channels = qkv.shape[2] // 3
    y = qkv.new_empty(batch, tokens, channels)
    z = qkv.new_empty(batch, heads, tokens, rank)
    u = qkv.new_empty(batch, heads, rank, channels // heads)
    with torch.cuda.device_of(qkv):
        _forward[batch * heads, triton.cdiv(tokens, FORWARD[0])](
            *(qkv, packed, y, z, u, heads, tokens, channels // heads, scales[0], parameter),
            **_options(qkv, packed, basis, FORWARD),
        )
    return y, z, u


def gradients(
    dy: Tensor,
    qkv: Tensor,
    coefficients: Tensor,
    weight: Tensor,
    z: Tensor,
    u: Tensor,
    scales: Sequence[float],
    basis: str,
    parameter: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the gradients of qkv, coefficients and weight, given that of y."""
    qkv, dy = qkv.contiguous(), dy.to(qkv.dtype).contiguous()
    packed = _pack(coefficients, weight, scales, qkv.dtype)
    (batch, tokens, _), (heads, count, _, rank) = qkv.shape, packed.shape
    dims = qkv.shape[2] // (3 * heads)
    tiles = triton.cdiv(tokens, GRAD_KEYS[1])
    # As many batches for each block as leave enough blocks; the same number on any GPU, so that
    # additions have one order.
    each = max(batch * tiles * heads // BLOCKS, 1)
    parts = triton.cdiv(batch, each)
    dqkv = torch.empty_like(qkv)
    dc = qkv.new_empty(parts, heads, count, tokens, rank, dtype=torch.float32)
    sizes = heads, tokens, dims, scales[0], parameter
    with torch.cuda.device_of(qkv):
        _grad_queries[batch * heads, triton.cdiv(tokens, GRAD_QUERIES[0])](
            *(qkv, packed, u, dy, dqkv, *sizes), **_options(qkv, packed, basis, GRAD_QUERIES)
        )
        _grad_keys[tiles, heads, parts](
            *(qkv, packed, z, u, dy, dqkv, dc, batch, *sizes),
            **_options(qkv, packed, basis, GRAD_KEYS),
        )
    dc = (dc.sum(0) if parts > 1 else dc[0])[..., : coefficients.shape[1]]
    grads = (
        torch.mul(dc[:, :-1].permute(0, 3, 2, 1), scales[1]),
        torch.mul(dc[:, -1], scales[2]),
    )
    return dqkv, *(
        grad.to(x.dtype).contiguous() for grad, x in zip(grads, (coefficients, weight), strict=True)
    )
