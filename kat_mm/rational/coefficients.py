"""Initial coefficients of the rational function, and the variance gain that follows from them."""

import math
from collections.abc import Callable, Sequence, Sized

import torch

from ..errors import ConfigError

# Minimax fits on [-3, 3] of P/Q, P of degree 5 and Q = 1 + sum |b_j| |x|^j of degree 4, with
# every b_j >= 0: (numerator a0..a5, denominator b1..b4). The largest error on [-3, 3] stands
# behind each; `max_error` recomputes it.
FITS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    'identity': ((0.0, 1.0, 0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)),  # exact
    'relu': (  # 1.3e-2
        (0.0127458423, 0.5, 2.79172015, 4.54308653, 2.58831954, 0.463543028),
        (0.0, 9.08617306, 0.0, 0.927086055),
    ),
    'leaky_relu': (  # 1.3e-2, negative slope 0.01
        (0.0126183834, 0.504999995, 2.76380301, 4.58851767, 2.56243634, 0.468178481),
        (0.0, 9.08617306, 0.0, 0.927086055),
    ),
    'gelu': (  # 1.3e-3
        (-0.00127416616, 0.5, 0.408155143, 0.106760457, 0.00857846439, 0.0),
        (0.0, 0.213520914, 0.0, 0.0),
    ),
    'swish': (  # 4.9e-7
        (4.55770646e-07, 0.5, 0.249996588, 0.0532448925, 0.00579310441, 0.00027386882),
        (0.0, 0.106489785, 0.0, 0.00054773764),
    ),
    'tanh': (  # 1.0e-6
        (0.0, 1.0000174, 0.0, 0.107029088, 0.0, 0.000844885421),
        (9.19001104e-05, 0.440250009, 0.0, 0.0143568516),
    ),
    'sigmoid': (  # 1.2e-8
        (0.5, 0.25, 0.05543641, 0.00688489294, 0.000484267628, 1.5599262e-05),
        (0.0, 0.11087282, 0.0, 0.000968535081),
    ),
    'mish': (  # 8.5e-5
        (7.1031609e-05, 0.600492895, 0.319514841, 0.130257353, 0.0333078876, 0.00340350089),
        (0.00742063066, 0.224498391, 0.0205193646, 0.00403832784),
    ),
    'softplus': (  # 1.9e-6
        (0.69314903, 0.5, 0.181013644, 0.0404153578, 0.00536233885, 0.000324774126),
        (0.0, 0.0808307156, 0.0, 0.000649548252),
    ),
    'elu': (  # 2.3e-4
        (0.000184868622, 0.99823761, 0.240968943, 0.313146949, 0.0560493357, 0.00609365851),
        (0.239984393, 0.310752779, 0.0581244826, 0.00567729119),
    ),
}
FITS['silu'] = FITS['swish']

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
}

Init = str | tuple[Sequence[float], Sequence[float]]


def initial_coefficients(
    init: Init, order: tuple[int, int] = (5, 4)
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the coefficients (numerator [m + 1], denominator [n]) in fp64 of an activation.

    Args:
        init: the name of a function in `FITS`, or the coefficients themselves as the pair
            (a0..am, b1..bn).
        order: the degrees (m, n) of P and Q. A named fit needs at least (5, 4), 'identity'
            (1, 1); higher coefficients are zero.

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
        name, (numerator, denominator) = f'init {init!r}', FITS[init]
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


def max_error(name: str, low: float = -3.0, high: float = 3.0) -> float:
    """Computes the largest |fit - function| on 100,001 even points of [low, high] in fp64."""
    x = torch.linspace(low, high, 100_001, dtype=torch.float64)
    return (evaluate(x, *initial_coefficients(name)) - FUNCTIONS[name](x)).abs().max().item()


def variance_gain(numerator: torch.Tensor, denominator: torch.Tensor) -> float:
    """Computes 1 / E[F(z)^2] for z ~ N(0, 1), F the rational function of one row of coefficients.

    A linear layer behind F keeps the variance of F's standard normal input if its weights have
    variance gain / fan_in (KAT, arXiv 2409.10594, section 4). The expectation is a sum over an
    even grid, which converges fast as the density and all its derivatives vanish at the ends.
    """
    z = torch.linspace(-12, 12, 24_001, dtype=torch.float64, device='cpu')
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    f = evaluate(z, numerator.double(), denominator.double())
    return 1.0 / (f * f * density).sum().mul(24 / 24_000).item()
