"""Minimax fits of functions by the rational that the op computes; needs scipy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from .coefficients import evaluate

POINTS = 1000
MAX_STEPS = 100
DIGITS = 9  # what the parameters hold, in fp32
NEGLIGIBLE = 1e-10  # an error that is lost in the rounding to fp32
MIN_B0 = 1e-7  # of the sum of Q's coefficients, when the variable runs to 1

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Fit:
    """A rational P(x) / Q(x) near a function.

    Attributes:
        numerator: a0..am.
        denominator: b1..bn, none negative.
        error: the largest |fit - function| on the interval of the fit.
        bound: no coefficients of this order have a smaller largest error.
    """

    numerator: tuple[float, ...]
    denominator: tuple[float, ...]
    error: float
    bound: float


def fit_rational(
    function: Function, low: float = -3.0, high: float = 3.0, order: tuple[int, int] = (5, 4)
) -> Fit:
    """Computes the best fit of a function by P(x) / Q(x), in the largest error on [low, high].

    P(x) = a0 + a1 x + ... + am x^m and Q(x) = 1 + b1 |x| + ... + bn |x|^n with all b_j >= 0, which
    is every denominator that the op can compute, as it takes |b_j|. For each error E, the
    coefficients with |f Q - P| <= E Q form a convex set, so that the best ones can be found, and
    known to be the best, by linear programs: the differential correction algorithm (Barrodale,
    Powell and Roberts, SIAM J. Numer. Anal. 9, 1972), whose last program also bounds every error
    from below. It runs on Chebyshev points, zero, and points where a result's error is largest.

    Args:
        function: takes and returns fp64 tensors [points].
        low, high: ends of the interval.
        order: degrees (m, n).

    Raises:
        ValueError: for an empty interval, degrees outside 1 to 8, or a function that is not
            finite there.
    """
    m, n = order
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f'the interval must be two finite numbers low < high, got {low}, {high}')
    if not (1 <= m <= 8 and 1 <= n <= 8):
        raise ValueError(f'order (m, n) must lie between 1 and 8, got {tuple(order)}')
    scale = max(abs(low), abs(high))
    x = _chebyshev(low, high, POINTS)
    best = None
    for _ in range(10):
        a, b, bound = _differential_correction(_values(function, x), x / scale, order)
        exact = a / b[0] / scale ** np.arange(m + 1), b[1:] / b[0] / scale ** np.arange(1, n + 1)
        error, where = largest_error(function, *exact, low, high)
        if best is None or error < best[0]:
            best = error, exact
        if error <= bound * (1 + 1e-3) or error <= NEGLIGIBLE or where in x:
            break
        x = np.union1d(x, where)
    rounded = [
        tuple(
            float(f'{v:.{DIGITS}g}') if abs(v) > NEGLIGIBLE / scale**i else 0.0 for i, v in powers
        )
        for powers in (enumerate(best[1][0]), enumerate(best[1][1], start=1))
    ]
    error, _ = largest_error(function, *rounded, low, high)
    return Fit(*rounded, float(error), float(bound))


def largest_error(
    function: Function,
    numerator: Sequence[float],
    denominator: Sequence[float],
    low: float,
    high: float,
) -> tuple[float, float]:
    """Computes the largest |P(x) / Q(x) - f(x)| on 100,001 even points and zero, and its place."""
    x = np.linspace(low, high, 100_001)
    if low < 0 < high:
        x = np.union1d(x, 0.0)
    coefficients = (torch.tensor(list(c), dtype=torch.float64) for c in (numerator, denominator))
    errors = np.abs(evaluate(torch.from_numpy(x), *coefficients).numpy() - _values(function, x))
    return errors.max(), x[errors.argmax()]


def _values(function: Function, x: np.ndarray) -> np.ndarray:
    y = torch.as_tensor(function(torch.from_numpy(x))).numpy()
    interval = f'[{x[0]:g}, {x[-1]:g}]'
    if y.shape != x.shape:
        raise ValueError(f'the function must give one value for each x in {interval}')
    if not np.isfinite(y).all():
        raise ValueError(f'the function is not finite at {x[~np.isfinite(y)][0]:g}, in {interval}')
    return y.astype(np.float64)


def _chebyshev(low: float, high: float, count: int) -> np.ndarray:
    x = (low + high) / 2 + (high - low) / 2 * np.cos(np.linspace(np.pi, 0, count))
    x[0], x[-1] = low, high
    return np.union1d(x, 0.0) if low < 0 < high else x


def _differential_correction(y, z, order):
    """Returns the best coefficients a0..am, b0..bn at points z in [-1, 1], and the bound.

    Here Q = b0 + b1 |z| + ..., with a sum of 1: large b1..bn, as kinks need, do no harm so.
    """
    m, n = order
    powers = z[:, None] ** np.arange(m + 1)
    magnitudes = np.abs(z)[:, None] ** np.arange(n + 1)
    a, b = np.linalg.lstsq(powers, y, rcond=None)[0], np.eye(n + 1)[0]
    error = np.abs(powers @ a - y).max()
    bound = 0.0
    for _ in range(MAX_STEPS):
        if error <= NEGLIGIBLE * max(1.0, np.abs(y).max()):
            return a, b, 0.0
        # Which changes of a and b, in units of the error now, make the largest of
        # (|y Q - P| / error - Q) / Q_now smallest?
        q = magnitudes @ b
        residual = (y * q - powers @ a) / error
        change = np.concatenate([-powers, y[:, None] * magnitudes], 1)
        growth = np.concatenate([np.zeros_like(powers), error * magnitudes], 1)
        rows = np.concatenate([change - growth, -change - growth]) / np.tile(q, 2)[:, None]
        least = np.concatenate([[MIN_B0], np.zeros(n)])
        program = linprog(
            c=[0.0] * (m + n + 2) + [1.0],
            A_ub=np.concatenate([rows, -np.ones((2 * len(z), 1))], 1),
            b_ub=np.concatenate([(q - residual) / q, (q + residual) / q]),
            A_eq=[[0.0] * (m + 1) + [1.0] * (n + 1) + [0.0]],
            b_eq=[0.0],
            bounds=[(None, None)] * (m + 1)
            + [((low - now) / error, None) for low, now in zip(least, b, strict=True)]
            + [(None, None)],
        )
        if not program.success:
            break
        upper, lower = np.split(-program.ineqlin.marginals, 2)
        bound = max(bound, _certified_bound((upper - lower) / q, y, powers, magnitudes))
        new_a = a + error * program.x[: m + 1]
        new_b = np.maximum(b + error * program.x[m + 1 : -1], least)
        new_error = np.abs(powers @ new_a / (magnitudes @ new_b) - y).max()
        if not new_error < error * (1 - 1e-9):
            break
        a, b, error = new_a, new_b, new_error
    return a, b, bound


def _certified_bound(weights, y, powers, magnitudes):
    """Returns an error that no coefficients are below, proven by weights of the points.

    With weights w that are orthogonal to all P, the largest |y - P/Q| is at least
    sum w (y Q - P) / sum |w| Q = sum w y Q / sum |w| Q, and that, as Q is a sum of powers with
    positive coefficients, at least the smallest such ratio of a single power.
    """
    support = np.abs(weights) > 0
    w, basis = weights[support], powers[support]
    if len(w) <= basis.shape[1]:
        return 0.0
    for _ in range(2):  # the second time removes what rounding left
        w = w - basis @ np.linalg.lstsq(basis, w, rcond=None)[0]
    ratios = (w * y[support]) @ magnitudes[support] / (np.abs(w) @ magnitudes[support])
    return max(0.0, ratios.min())
