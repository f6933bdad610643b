"""The group-rational function in plain PyTorch: the op's oracle and fallback."""

import math

import torch
from torch import Tensor

from .arguments import check_arguments


def group_layout(
    x: Tensor, numerator: Tensor, denominator: Tensor, channel_dim: int
) -> tuple[int, int, int]:
    """Returns how a contiguous copy of `x` splits into groups: (outer, groups, run).

    `run` adjacent elements share one pair of coefficient rows: the channels of one group
    times everything behind the channel dimension.
    """
    groups = max(numerator.shape[0], denominator.shape[0])
    dim = channel_dim % x.dim()
    # numel() would make a constant of a dynamic size.
    return math.prod(x.shape[:dim]), groups, math.prod(x.shape[dim:]) // groups


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _evaluate(x: Tensor, numerator: Tensor, denominator: Tensor) -> tuple[Tensor, Tensor]:
    """P(x) and Q(x) by Horner's rule; x is [outer, groups, run]."""
    a = numerator[:, None, :]
    b = denominator.abs()[:, None, :]
    magnitude = x.abs()
    p = a[..., -1]
    for i in range(numerator.shape[1] - 2, -1, -1):
        p = p * x + a[..., i]
    q = b[..., -1]
    for j in range(denominator.shape[1] - 2, -1, -1):
        q = q * magnitude + b[..., j]
    return p, q * magnitude + 1


def rational_reference(
    x: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    channel_dim: int = -1,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Computes P(x) / Q(x) with one (P, Q) per group of adjacent channels.

    P(x) = a0 + a1 x + ... + am x^m and Q(x) = 1 + |b1||x| + ... + |bn||x|^n
    (KAT, arXiv 2409.10594, section 4, with the absolute value around each term, as the published
    kernels evaluate it). Arithmetic is fp32, or fp64 for an fp64 `x`.

    Args:
        x, numerator, denominator, channel_dim: as in `kat_mm.rational.rational`.
        out_dtype: the dtype of the result, by default that of `x`.
    """
    check_arguments(x, numerator, denominator, channel_dim)
    y = torch.empty_like(x, dtype=out_dtype or x.dtype)
    return y.copy_(rational_formula(x, numerator, denominator, channel_dim))


def rational_formula(
    x: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    channel_dim: int = -1,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Computes `rational_reference` out of place, so that exporters can take it for the op.

    Memory of the result is contiguous, whatever that of x is like.
    """
    dtype = _compute_dtype(x)
    layout = group_layout(x, numerator, denominator, channel_dim)
    p, q = _evaluate(x.reshape(layout).to(dtype), numerator.to(dtype), denominator.to(dtype))
    return (p / q).reshape(x.shape).to(out_dtype or x.dtype)


def rational_backward_reference(
    grad: Tensor,
    x: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    channel_dim: int = -1,
    coefficient_grads: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the gradients of `rational_reference` by its closed form.

    With y = P/Q, u = grad/Q and v = -u y:
    dx = u (P' - sgn(x) y Q'), da_i = sum u x^i, db_j = sgn(b_j) sum v |x|^j.
    sgn(0) is 0 for x, as in torch.abs, and +1 for b: a denominator that starts at zero
    (the identity) would otherwise never learn.

    Returns:
        The gradients of x, numerator and denominator; the last two are empty unless
        `coefficient_grads`.
    """
    dtype = _compute_dtype(x)
    layout = group_layout(x, numerator, denominator, channel_dim)
    z, g = x.reshape(layout).to(dtype), grad.reshape(layout).to(dtype)
    a, b = numerator.to(dtype), denominator.to(dtype)
    p, q = _evaluate(z, a, b)
    u = g / q
    y = p / q
    magnitude = z.abs()

    orders = torch.arange(1, max(a.shape[1], b.shape[1] + 1), device=x.device, dtype=dtype)
    slopes_a = (a[:, 1:] * orders[: a.shape[1] - 1])[:, None, :]
    slopes_b = (b.abs() * orders[: b.shape[1]])[:, None, :]
    dp = slopes_a[..., -1]
    for i in range(slopes_a.shape[-1] - 2, -1, -1):
        dp = dp * z + slopes_a[..., i]
    dq = slopes_b[..., -1]
    for j in range(slopes_b.shape[-1] - 2, -1, -1):
        dq = dq * magnitude + slopes_b[..., j]
    grad_x = torch.empty_like(x).copy_((u * (dp - z.sign() * y * dq)).reshape(x.shape))
    if not coefficient_grads:
        return grad_x, numerator.new_empty(0), denominator.new_empty(0)

    v = -u * y
    sums_a, sums_b = [], []
    power = u
    for i in range(a.shape[1]):
        power = power * z if i else u
        sums_a.append(power.sum((0, 2)))
    power = v
    for _ in range(b.shape[1]):
        power = power * magnitude
        sums_b.append(power.sum((0, 2)))
    grad_a, grad_b = torch.stack(sums_a, 1), torch.stack(sums_b, 1)
    if a.shape[0] == 1:
        grad_a = grad_a.sum(0, keepdim=True)
    if b.shape[0] == 1:
        grad_b = grad_b.sum(0, keepdim=True)
    grad_b = torch.where(b < 0, -grad_b, grad_b)
    return grad_x, grad_a.to(numerator.dtype), grad_b.to(denominator.dtype)
