"""Least squares fits of the operators of Kolmogorov-Arnold attention, from moments alone."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..attention.bases import LinearBasis
from ..attention.operator import Operator
from ..attention.units import BASE_FUNCTIONS
from ..errors import ConfigError

CHUNK = 2**24  # values of functions that are there at a time
RIDGES = (1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 10.0)
FLOOR = 1e-6  # added to the metric, times its mean eigenvalue


def check_fittable(operator: Operator, what: str = 'the operator') -> None:
    """Checks that weights are linear in the parameters of an operator, or are so in two steps.

    Raises:
        ConfigError: names what keeps it from being fitted.
    """
    basis = operator.units.basis
    if operator.form not in ('w_phi', 'phi'):
        reason = f'form={operator.form!r} puts functions behind sums; w_phi and phi can be fitted'
    elif not isinstance(basis, LinearBasis):
        reason = f'{type(basis).__name__} functions are not linear in their coefficients'
    elif operator.simplex:
        reason = 'the projection on the simplex is not linear'
    else:
        return
    raise ConfigError(f'{what} cannot be fitted by least squares: {reason}')


def features(operator: Operator, scores: Tensor) -> Tensor:
    """Computes all fixed functions f(s) [..., N * count] of rows of scores [..., N]."""
    found = list(operator.units.basis.functions(scores))
    if operator.units.base:
        found.append(BASE_FUNCTIONS[operator.units.base](scores))
    return torch.stack(found, -1).flatten(-2)


class Moments:
    """Sums over rows of scores that least squares needs, for each head, in fp64.

    With f the F values of all functions of all N scores, w the weights wanted and V the values:
    sums of f f^T [F, F], f w^T [F, N] and w w^T [N, N] over rows, and of V V^T [N, N] over images.
    Their size does not grow with the rows.
    """

    def __init__(self, operator: Operator):
        self.operator, self.rows = operator, 0
        heads, _, count, functions = operator.units.coefficients.shape
        functions += operator.units.base is not None
        zeros = dict(dtype=torch.float64, device=operator.units.coefficients.device)
        self.ff = torch.zeros(heads, count * functions, count * functions, **zeros)
        self.fw = torch.zeros(heads, count * functions, count, **zeros)
        self.ww, self.vv = torch.zeros(2, heads, count, count, **zeros)

    @staticmethod
    def size(operator: Operator) -> int:
        """Returns the bytes that the moments of an operator take."""
        heads, _, count, functions = operator.units.coefficients.shape
        wide = count * (functions + (operator.units.base is not None))
        return 8 * heads * (wide * wide + wide * count + 2 * count * count)

    def add(self, scores: Tensor, weights: Tensor, values: Tensor) -> None:
        """Adds rows.

        Args:
            scores: [B, heads, n, N], scaled.
            weights: those wanted, of the same shape.
            values: [B, heads, N, d].
        """
        scores, weights, values = (x.to(self.ff) for x in (scores, weights, values))
        self.rows += scores.shape[0] * scores.shape[2]
        step = max(CHUNK // (scores.shape[2] * self.ff.shape[1]), 1)
        for h in range(self.ff.shape[0]):
            for s, w in zip(scores[:, h].split(step), weights[:, h].split(step), strict=True):
                f, w = features(self.operator, s).flatten(0, 1), w.flatten(0, 1)
                self.ff[h] += f.mT @ f
                self.fw[h] += f.mT @ w
                self.ww[h] += w.mT @ w
            self.vv[h] += (values[:, h] @ values[:, h].mT).sum(0)


class Solution(NamedTuple):
    """How an operator was fitted.

    Attributes:
        choices: of each head, the number of the moments that it was fitted by.
        ridges: what was added to each head's moments f f^T, in units of their mean eigenvalue.
        conditions: of the systems solved.
        errors: of each head on the held-out rows, as `fit_operator` has it.
    """

    choices: list[int]
    ridges: list[float]
    conditions: list[float]
    errors: list[float]


class _Fit(NamedTuple):
    """A linear map w_part @ f_part, [N, r] @ [r, F], of one head."""

    error: float
    ridge: float
    condition: float
    w_part: Tensor
    f_part: Tensor


@torch.no_grad()
def fit_operator(
    operator: Operator,
    alternatives: Sequence[tuple[Moments, Moments]],
    ridges: Sequence[float] = RIDGES,
) -> Solution:
    """Sets the parameters of an operator to those that give the weights wanted best.

    The linear map B from f to weights that is wanted minimises, over all rows, the mean of
    |(w - B f)^T V|^2 = (w - B f)^T (V V^T) (w - B f), which is the error of attention's output. The
    V V^T of single images is replaced by its mean, which makes the minimum closed. With a ridge
    times |B|^2 in this metric added, that is B = (sum w f^T) (sum f f^T + ridge)^-1, for form
    'phi', and of all B of rank r, for 'w_phi', its projection on the r directions of weights that
    it explains most of (reduced-rank regression; Izenman, J. Multivariate Analysis 5, 1975).

    The r coefficient rows have a mean square of 1, as drawn; W has the size.

    Args:
        operator: as `check_fittable` accepts.
        alternatives: moments of rows that are fitted, and of others that are held out; by the
            error on those each head chooses among alternatives, which may differ in how scores
            are scaled, and among ridges.
        ridges: to choose from, in units of the mean eigenvalue of sum f f^T.

    Returns:
        What was chosen. Errors are relative, in the metric: sqrt(sum |w - B f|^2 / sum |w|^2).
    """
    solution = Solution([], [], [], [])
    for h in range(operator.units.coefficients.shape[0]):
        fits = [
            (fit, choice)
            for choice, (fitted, held_out) in enumerate(alternatives)
            for fit in _fits(operator, fitted, held_out, h, ridges)
        ]
        best, choice = min(fits, key=lambda pair: pair[0].error)
        _write(operator, h, best.w_part, best.f_part)
        for values, value in zip(
            solution, (choice, best.ridge, best.condition, best.error), strict=True
        ):
            values.append(value)
    return solution


def _fits(operator, fitted, held_out, h, ridges) -> Iterator[_Fit]:
    """Yields the best map of one head for each ridge."""
    values, vectors = torch.linalg.eigh(fitted.ff[h])
    values, mean = values.clamp(min=0), values.mean()
    root, inverse = _roots(fitted.vv[h])
    turned = vectors.mT @ fitted.fw[h] @ root  # [F, N]
    for ridge in ridges:
        damped = values + ridge * mean
        maps = turned / damped[:, None]
        if operator.form == 'w_phi':
            rank = min(operator.weight.shape[2], len(root))
            # In ascending order of what is explained.
            left = torch.linalg.eigh(turned.mT @ maps)[1].flip(1)[:, :rank]
        else:
            left = torch.eye(len(root), dtype=root.dtype, device=root.device)
        w_part, f_part = inverse @ left, (vectors @ (maps @ left)).mT
        error = _error(held_out, h, w_part, f_part)
        yield _Fit(error, ridge, (damped[-1] / damped[0]).item(), w_part, f_part)


def _roots(vv: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the square root of a metric, with its mean eigenvalue as 1, and the inverse of it."""
    values, vectors = torch.linalg.eigh(vv)
    values = (values / values.mean().clamp(min=1e-300)).clamp(min=0) + FLOOR
    return vectors * values.sqrt() @ vectors.mT, vectors * values.rsqrt() @ vectors.mT


def _error(moments: Moments, h: int, w_part: Tensor, f_part: Tensor) -> float:
    vv, ww = moments.vv[h], moments.ww[h]
    metric = w_part.mT @ vv
    cross = (metric @ (f_part @ moments.fw[h]).mT).trace()
    square = (metric @ w_part @ (f_part @ moments.ff[h] @ f_part.mT)).trace()
    total = (vv * ww).sum()
    return ((total - 2 * cross + square).clamp(min=0) / total).sqrt().item()


def _write(operator: Operator, h: int, w_part: Tensor, f_part: Tensor) -> None:
    units = operator.units
    count = units.coefficients.shape[2]
    inner, outer = operator.scales(count)
    if operator.form == 'w_phi':
        f_part, w_part = f_part / (inner * outer), w_part.clone()
        sizes = f_part.square().mean(1).sqrt()
        sizes = torch.where(sizes > 0, sizes, 1)
        f_part /= sizes[:, None]
        operator.weight[h] = 0  # of those that are more than the tokens
        operator.weight[h, :, : len(sizes)] = (w_part * sizes).to(operator.weight)
    else:
        f_part = w_part @ f_part / (inner * outer)
    rows = f_part.unflatten(1, (count, -1)).to(units.coefficients)
    number = units.coefficients.shape[3]
    units.coefficients[h, : len(rows)] = rows[..., :number]
    if units.base:
        units.base_scale[h, : len(rows)] = rows[..., number]
    if units.basis_scale is not None:
        units.basis_scale[h] = 1
