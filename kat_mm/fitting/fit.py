"""Fits of functions by the rational that the op computes: minimax, or to samples; needs scipy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linprog, lsq_linear
from torch import Tensor

from ..errors import one_line
from ..rational.coefficients import evaluate

POINTS = 1000
MAX_STEPS = 100
DIGITS = 9  # what the parameters hold, in fp32
NEGLIGIBLE = 1e-10  # an error that is lost in the rounding to fp32
MIN_B0 = 1e-7  # of the sum of Q's coefficients, when the variable runs to 1
FP32_DIGITS = 37  # numbers between 1e-37 and 1e37 are normal in fp32
STEPS = 10  # more make fits to samples no better
EVEN = 1e-3  # of the samples' weight lies evenly on their range, so that rare ones count

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Fit:
    """A rational P(x) / Q(x) near a function.

    Attributes:
        numerator: a0..am.
        denominator: b1..bn, none negative.
        error: the largest |fit - function| on the interval of the fit.
        bound: no coefficients of this order have a smaller largest error; 0 where none is known.
    """

    numerator: tuple[float, ...]
    denominator: tuple[float, ...]
    error: float
    bound: float = 0.0


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
        ValueError: for an empty interval, degrees outside 1 to 8, powers or coefficients that fp32
            does not hold, or a function that fails or is not finite there.
    """
    low, high = float(low), float(high)
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(
            f'the interval must be two finite numbers low < high, got {low:g}, {high:g}'
        )
    scale = _scale(low, high, order)
    m, n = order
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
    fit = _rounded(*best[1], scale)
    error, _ = largest_error(function, *fit, low, high)
    return Fit(*fit, float(error), float(bound))


def fit_samples(
    function: Function, x: np.ndarray, counts: np.ndarray, order: tuple[int, int] = (5, 4)
) -> Fit:
    """Computes a fit by P(x) / Q(x) whose mean square error over samples is small.

    Where most samples lie close together, it is many times closer to the function there than the
    minimax fit on their range, and farther from it where there are few. Each step is a linear
    least-squares problem, as Q in its weights is that of the step before (Sanathanan and Koerner,
    IEEE Transactions on Automatic Control 8, 1963).

    Args:
        function: takes and returns fp64 tensors [points].
        x: points in ascending order, fp64, from one end of the samples' range to the other.
        counts: how many samples there are near each.
        order: degrees (m, n).

    Raises:
        ValueError: as `fit_rational`.
    """
    scale = _scale(x[0], x[-1], order)
    m, n = order
    y = _values(function, x)
    weights = np.sqrt(counts / counts.sum() + EVEN / len(x))
    powers = (x / scale)[:, None] ** np.arange(m + 1)
    magnitudes = np.abs(x / scale)[:, None] ** np.arange(1, n + 1)
    bounds = np.repeat([-np.inf, 0.0], [m + 1, n]), np.inf
    q, least = np.ones_like(x), np.inf
    for _ in range(STEPS):
        rows = np.concatenate([powers, -y[:, None] * magnitudes], 1) * (weights / q)[:, None]
        a, b = np.split(lsq_linear(rows, y * weights / q, bounds).x, [m + 1])
        q = 1 + magnitudes @ b
        if (error := np.square(weights * (powers @ a / q - y)).sum()) < least:
            least, best = error, (a / scale ** np.arange(m + 1), b / scale ** np.arange(1, n + 1))
    fit = _rounded(*best, scale)
    error, _ = largest_error(function, *fit, x[0], x[-1])
    return Fit(*fit, float(error))


def _scale(low: float, high: float, order: tuple[int, int]) -> float:
    """The largest |x|, by which points are divided; its powers must be numbers of fp32."""
    if min(order) < 1 or max(order) > 8:
        raise ValueError(f'order (m, n) must lie between 1 and 8, got {tuple(order)}')
    scale = max(abs(low), abs(high))
    if abs(np.log10(scale)) * max(order) > FP32_DIGITS:
        raise ValueError(
            f'powers up to {max(order)} of x in [{low:g}, {high:g}] are beyond the range of fp32; '
            'choose a lower order or another interval'
        )
    return scale


def _rounded(a: np.ndarray, b: np.ndarray, scale: float) -> tuple[tuple, tuple]:
    """Rounds a0..am and b1..bn to what fp32 holds; what changes nothing becomes zero."""
    if max(np.abs(a).max(), b.max()) > np.finfo(np.float32).max:
        raise ValueError('the coefficients are beyond the range of fp32; choose another interval')
    return tuple(
        tuple(
            float(f'{v:.{DIGITS}g}') if abs(v) > NEGLIGIBLE / scale**i else 0.0 for i, v in powers
        )
        for powers in (enumerate(a), enumerate(b, start=1))
    )


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
    errors = np.abs(_evaluate(x, numerator, denominator) - _values(function, x))
    return errors.max(), x[errors.argmax()]


def rms_error(
    function: Function,
    numerator: Sequence[float],
    denominator: Sequence[float],
    x: np.ndarray,
    counts: np.ndarray,
) -> float:
    """Computes the root of the mean square of P(x) / Q(x) - f(x) over samples near points x."""
    errors = _evaluate(x, numerator, denominator) - _values(function, x)
    return float(np.sqrt(np.square(errors) @ counts / counts.sum()))


def _evaluate(
    x: np.ndarray, numerator: Sequence[float], denominator: Sequence[float]
) -> np.ndarray:
    coefficients = (torch.tensor(list(c), dtype=torch.float64) for c in (numerator, denominator))
    return evaluate(torch.from_numpy(x), *coefficients).numpy()


def _values(function: Function, x: np.ndarray) -> np.ndarray:
    interval = f'[{x[0]:g}, {x[-1]:g}]'
    try:
        y = torch.as_tensor(function(torch.from_numpy(x))).detach().numpy()
    except Exception as error:  # whatever the function does with a tensor
        raise ValueError(
            f'the function fails for a tensor of {len(x)} points in {interval} ({one_line(error)})'
        ) from error
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
