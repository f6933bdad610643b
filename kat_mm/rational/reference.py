"""The group-rational function in plain PyTorch: the op's oracle and fallback."""

import torch
from torch import Tensor

from .arguments import check_arguments


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _Grouped:
    """The arguments in the dtype of the arithmetic, in shapes that broadcast.

    `x` is [..., groups, channels of a group, ...], a view that keeps the order of memory;
    coefficients are [orders, 1 or groups, 1, ...].
    """

    def __init__(self, x: Tensor, numerator: Tensor, denominator: Tensor, channel_dim: int):
        check_arguments(x, numerator, denominator, channel_dim)
        self.dtype = _compute_dtype(x)
        self.groups = max(numerator.shape[0], denominator.shape[0])
        self.dim = channel_dim % x.dim()
        self.x = self.split(x)
        self.numerator = self.rows(numerator)
        # Not abs(), whose derivative at 0 is 0.
        self.denominator = self.rows(torch.where(denominator < 0, -denominator, denominator))

    def split(self, tensor: Tensor) -> Tensor:
        sizes = self.groups, tensor.shape[self.dim] // self.groups
        return tensor.unflatten(self.dim, sizes).to(self.dtype)

    def join(self, tensor: Tensor) -> Tensor:
        return tensor.flatten(self.dim, self.dim + 1)

    def rows(self, coefficients: Tensor) -> Tensor:
        rows = coefficients.to(self.dtype).t()
        return rows.reshape(*rows.shape, *[1] * (self.x.dim() - self.dim - 1))

    def sums(self, terms: list[Tensor], like: Tensor) -> Tensor:
        """The sum of each term over the elements that share a row, as `like`."""
        dims = [d for d in range(self.x.dim()) if d != self.dim]
        sums = torch.stack([term.sum(dims) for term in terms], 1)
        return (sums.sum(0, keepdim=True) if like.shape[0] == 1 else sums).to(like.dtype)


def _horner(coefficients: Tensor | list[Tensor], x: Tensor) -> Tensor:
    """c0 + c1 x + c2 x^2 + ... by Horner's rule."""
    *others, y = coefficients
    for coefficient in reversed(others):
        y = y * x + coefficient
    return y


def _evaluate(grouped: _Grouped) -> tuple[Tensor, Tensor]:
    """P(x) and Q(x)."""
    magnitude = grouped.x.abs()
    q = _horner(grouped.denominator, magnitude) * magnitude + 1
    return _horner(grouped.numerator, grouped.x), q


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
    y = torch.empty_like(x, dtype=out_dtype or x.dtype)
    return y.copy_(rational_formula(x, numerator, denominator, channel_dim))


def rational_formula(
    x: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    channel_dim: int = -1,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Computes `rational_reference` out of place, for exporters and for derivatives of any order.

    Derivatives take the derivative of |x| at 0 for 0 and that of |b| for +1, in all orders.
    """
    grouped = _Grouped(x, numerator, denominator, channel_dim)
    p, q = _evaluate(grouped)
    return grouped.join(p / q).to(out_dtype or x.dtype)


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
    grad_x, *grads = rational_backward_formula(
        grad, x, numerator, denominator, channel_dim, coefficient_grads
    )
    return torch.empty_like(x).copy_(grad_x), *grads


def rational_backward_formula(
    grad: Tensor,
    x: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    channel_dim: int = -1,
    coefficient_grads: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes `rational_backward_reference` out of place, for derivatives of higher orders."""
    if grad.shape != x.shape:
        raise RuntimeError(
            f'rational_backward: grad must have the shape of x, got {tuple(grad.shape)} for x '
            f'{tuple(x.shape)}'
        )
    grouped = _Grouped(x, numerator, denominator, channel_dim)
    z, magnitude = grouped.x, grouped.x.abs()
    p, q = _evaluate(grouped)
    u = grouped.split(grad) / q
    y = p / q

    dp = _horner([i * a for i, a in enumerate(grouped.numerator)][1:], z)
    dq = _horner([j * b for j, b in enumerate(grouped.denominator, 1)], magnitude)
    grad_x = grouped.join(u * (dp - z.sign() * y * dq)).to(x.dtype)
    if not coefficient_grads:
        return grad_x, numerator.new_empty(0), denominator.new_empty(0)

    terms_a, terms_b = [u], [-u * y * magnitude]
    while len(terms_a) < numerator.shape[1]:
        terms_a.append(terms_a[-1] * z)
    while len(terms_b) < denominator.shape[1]:
        terms_b.append(terms_b[-1] * magnitude)
    grad_b = grouped.sums(terms_b, denominator)
    grad_b = torch.where(denominator < 0, -grad_b, grad_b)
    return grad_x, grouped.sums(terms_a, numerator), grad_b
