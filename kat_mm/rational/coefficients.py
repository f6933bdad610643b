"""Initial coefficients of the rational function, and the variance gain that follows from them."""

import math
from collections.abc import Callable, Sequence, Sized

import torch

from ..errors import ConfigError
from .fits import FITS

FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    'identity': lambda x: x,
    'relu': torch.relu,
    'leaky_relu': torch.nn.functional.leaky_relu,
    'gelu': torch.nn.functional.gelu,
    'swish': torch.nn.functional.silu,
    'silu': torch.nn.functional.silu,
    'tanh': torch.tanh,
    'sigmoid': torch.sigmoid,
    'mish': torch.nn.functional.mish,
    'softplus': torch.nn.functional.softplus,
    'elu': torch.nn.functional.elu,
    'hardswish': torch.nn.functional.hardswish,
    # The gates of GLUs whose two inputs are one, as in the KAT paper's code.
    'geglu': lambda x: x * torch.nn.functional.gelu(x),
    'swiglu': lambda x: x * torch.nn.functional.silu(x),
}

Init = str | tuple[Sequence[float], Sequence[float]]


def initial_coefficients(
    init: Init, order: tuple[int, int] = (5, 4)
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the coefficients (numerator [m + 1], denominator [n]) in fp64 of an activation.

    Args:
        init: the name of a function in `FITS`, or the coefficients themselves as the pair
            (a0..am, b1..bn).
        order: the degrees (m, n) of P and Q. A named function has its best fit of at most this
            order; higher coefficients are zero.

    Raises:
        ConfigError: for an unknown name or coefficients that do not fit `order`.
    """
    is_pair = isinstance(init, Sequence) and len(init) == 2 and all(map(_has_length, init))
    if not isinstance(init, str) and not is_pair:
        raise ConfigError(
            f'init={init!r} must be the name of a function or a pair, the coefficients of '
            'numerator and denominator'
        )
    if isinstance(init, str):
        if init not in FITS:
            raise ConfigError(f'unknown rational init {init!r}; known: {", ".join(sorted(FITS))}')
        fits = FITS[init]
        orders = [(m, n) for m, n in fits if m <= order[0] and n <= order[1]]
        name, (numerator, denominator) = f'init {init!r}', fits[orders[-1] if orders else min(fits)]
    else:
        name, (numerator, denominator) = 'init', init
    m, n = order
    padded = []
    for values, length in ((numerator, m + 1), (denominator, n)):
        # On the CPU, whatever the default device is: a model can be built on the meta device.
        row = torch.zeros(max(length, len(values)), dtype=torch.float64, device='cpu')
        row[: len(values)] = torch.tensor(list(values), dtype=torch.float64, device='cpu')
        if row[length:].any():
            raise ConfigError(
                f'{name} has {len(numerator)} numerator and {len(denominator)} denominator '
                f'coefficients; order={tuple(order)} holds {m + 1} and {n}. Choose a higher order '
                'or pass coefficients of this order as init=(numerator, denominator)'
            )
        padded.append(row[:length])
    return padded[0], padded[1]


def _has_length(value: object) -> bool:
    return isinstance(value, Sized) and not isinstance(value, str)


def evaluate(x: torch.Tensor, numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    """Computes P(x) / Q(x) in the dtype of `x` for one row of coefficients, [m + 1] and [n]."""
    p = sum(a * x**i for i, a in enumerate(numerator))
    q = 1 + sum(b.abs() * x.abs() ** j for j, b in enumerate(denominator, start=1))
    return p / q


def max_error(
    name: str, low: float = -3.0, high: float = 3.0, order: tuple[int, int] = (5, 4)
) -> float:
    """Computes the largest |fit - function| on 100,001 even points of [low, high] in fp64."""
    x = torch.linspace(low, high, 100_001, dtype=torch.float64)
    fit = evaluate(x, *initial_coefficients(name, order))
    return (fit - FUNCTIONS[name](x)).abs().max().item()


def variance_gain(function: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Computes 1 / E[F(z)^2] of an activation F, for z ~ N(0, 1).

    A linear layer behind F keeps the variance of F's standard normal input if its weights have
    variance gain / fan_in (KAT, arXiv 2409.10594, section 4). The expectation is a sum over an
    even grid, which converges fast as the density and all its derivatives vanish at the ends.

    Args:
        function: F, as values [points] of fp64 points [points] on the CPU; or [points, groups], of
            an F for each group, over which the expectation is then the mean.

    Raises:
        ConfigError: if F is zero, so that no weights keep the variance.
    """
    z = torch.linspace(-12, 12, 24_001, dtype=torch.float64, device='cpu')
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    squares = function(z).to(z).square().view(len(z), -1).mean(1)
    mean_square = (squares * density).sum().mul(24 / 24_000).item()
    if not mean_square:
        raise ConfigError('an activation that is zero everywhere has no variance gain')
    return 1.0 / mean_square
