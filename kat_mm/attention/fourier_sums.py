"""The torch op kat_mm::fourier_sums: sums of trigonometric series of attention scores.

On a GPU it is computed by `fourier_kernels.py`, where Triton is installed: no scores are stored.
"""

from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from ..rational.op import library

LEAST = 16  # side of a matrix product of the kernels
MAX_DIMS, MAX_RANK, MAX_TERMS = 128, 64, 8  # what the kernels hold in registers
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def padded(rank: int) -> int:
    """Returns the number of sums that the op gives for r of them: a power of 2, zeros behind r."""
    return max(1 << (rank - 1).bit_length(), LEAST)


def is_served(q: Tensor, coefficients: Tensor) -> bool:
    """Tells whether kernels serve a call of `fourier_sums`."""
    _, rank, _, count = coefficients.shape
    return (
        q.is_cuda
        and q.dtype in DTYPES
        and q.numel() > 0
        and q.shape[-1] <= MAX_DIMS
        and rank <= MAX_RANK
        and count <= 2 * MAX_TERMS
        and _has_triton()
    )


@cache
def _has_triton() -> bool:
    return find_spec('triton') is not None


def fourier_sums(q: Tensor, k: Tensor, coefficients: Tensor) -> Tensor:
    """Computes z_np = sum_m sum_g a_pmg cos(g s_nm) + b_pmg sin(g s_nm) of scores s = q k^T.

    Gradients are the same bits in each run. A second derivative raises, by the op's name.

    Args:
        q: [B, H, N, d], scaled as the scores are to be.
        k: [B, H, M, d] in the dtype of q.
        coefficients: a_1, b_1, a_2, b_2 and so on of each head, [H, r, M, 2 G].

    Returns:
        [B, H, N, padded(r)] in fp32, or fp64 for fp64; zero behind r.
    """
    return torch.ops.kat_mm.fourier_sums.default(q, k, coefficients)


def _sums(q: Tensor, k: Tensor, coefficients: Tensor) -> Tensor:
    if is_served(q, coefficients):
        from .fourier_kernels import sums

        return sums(q, k, coefficients)
    z = _formula(q, k, coefficients)
    return F.pad(z, (0, padded(z.shape[-1]) - z.shape[-1]))


def _gradients(grad: Tensor, q: Tensor, k: Tensor, coefficients: Tensor) -> tuple[Tensor, ...]:
    if is_served(q, coefficients):
        from .fourier_kernels import gradients

        return gradients(grad, q, k, coefficients)
    # By hand: autograd does not see into an op.
    wide_q, wide_k, c = map(_widened, (q, k, coefficients))
    s, grad = wide_q @ wide_k.mT, grad[..., : c.shape[1]].to(c.dtype)
    slopes, found = torch.zeros_like(s), []
    for g in range(1, c.shape[-1] // 2 + 1):
        cos, sin = (g * s).cos(), (g * s).sin()
        slopes += g * (grad @ c[..., 2 * g - 1] * cos - grad @ c[..., 2 * g - 2] * sin)
        found += [(grad.mT @ cos).sum(0), (grad.mT @ sin).sum(0)]
    grads = slopes @ wide_k, slopes.mT @ wide_q, torch.stack(found, -1)
    return tuple(
        x.to(y.dtype).contiguous() for x, y in zip(grads, (q, k, coefficients), strict=True)
    )


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype is torch.float64 else x.float()


def _formula(q: Tensor, k: Tensor, coefficients: Tensor) -> Tensor:
    from .bases.fourier import Fourier

    q, k, coefficients = map(_widened, (q, k, coefficients))
    return Fourier(coefficients.shape[-1] // 2).sums(q @ k.mT, coefficients)


for name, schema, function in (
    ('fourier_sums', '(Tensor q, Tensor k, Tensor coefficients) -> Tensor', _sums),
    (
        'fourier_sums_backward',
        '(Tensor grad, Tensor q, Tensor k, Tensor coefficients) -> (Tensor, Tensor, Tensor)',
        _gradients,
    ),
):
    library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, function, 'CompositeExplicitAutograd')


@torch.library.register_fake('kat_mm::fourier_sums', lib=library)
def _fake(q, k, coefficients):
    dtype = torch.float64 if q.dtype is torch.float64 else torch.float32
    return q.new_empty(*q.shape[:-1], padded(coefficients.shape[1]), dtype=dtype)


@torch.library.register_fake('kat_mm::fourier_sums_backward', lib=library)
def _backward_fake(grad, q, k, coefficients):
    return tuple(x.new_empty(x.shape) for x in (q, k, coefficients))


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    return torch.ops.kat_mm.fourier_sums_backward.default(grad, *ctx.saved_tensors)


torch.library.register_autograd(
    'kat_mm::fourier_sums', _backward, setup_context=_setup_context, lib=library
)


def _refuse(ctx, *grads):
    raise NotImplementedError('kat_mm::fourier_sums_backward has no derivatives')


torch.library.register_autograd('kat_mm::fourier_sums_backward', _refuse, lib=library)
