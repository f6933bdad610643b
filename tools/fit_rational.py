"""Fits P(x) / Q(x) to a function as well as can be: tools/fit_rational.py gelu --order 6 4

P has degree m and Q = 1 + |b1||x| + ... + |bn||x|^n, as the op computes it. Prints the largest
error, a bound that no coefficients of this order are below, and the coefficients as GroupRational
takes them: init=(numerator, denominator).
"""

import argparse
from pathlib import Path

import torch

from kat_mm.engine import cli
from kat_mm.engine.callables import load_callable
from kat_mm.errors import ConfigError
from kat_mm.rational.coefficients import FUNCTIONS, variance_gain
from kat_mm.rational.fitting import Fit, Function, fit_rational, largest_error


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'function',
        help=f'one of {", ".join(FUNCTIONS)}, or module:callable of your own, such as torch:erf, '
        'which takes and returns a tensor',
    )
    parser.add_argument(
        '--order', type=int, nargs=2, default=(5, 4), metavar=('M', 'N'), help='degrees of P and Q'
    )
    parser.add_argument('--interval', type=float, nargs=2, default=(-3, 3), metavar=('LOW', 'HIGH'))
    parser.add_argument('--plot', type=Path, help='PNG file of function, fit and error')
    return parser.parse_args()


def plot(name: str, function: Function, fit: Fit, low: float, high: float, png: Path) -> None:
    """Draws the function and its fit, and the error, also beside the interval."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from kat_mm.rational.coefficients import evaluate

    beside = (high - low) / 4
    x = torch.linspace(low - beside, high + beside, 4001, dtype=torch.float64)
    y = function(x)
    fitted = evaluate(x, torch.tensor(fit.numerator), torch.tensor(fit.denominator))
    figure = Figure(figsize=(10, 4), layout='constrained')
    FigureCanvasAgg(figure)
    curves, errors = figure.subplots(1, 2)
    curves.plot(x, y, label=name, linewidth=3, alpha=0.5)
    curves.plot(x, fitted, label=f'fit of order {len(fit.numerator) - 1}, {len(fit.denominator)}')
    inside = (x >= low) & (x <= high)
    errors.plot(x[inside], (fitted - y)[inside], color='tab:red')
    for bound in (-fit.bound, fit.bound):
        errors.axhline(bound, color='grey', linestyle='--', label='least possible' * (bound > 0))
    errors.set(title=f'error on [{low:g}, {high:g}]: at most {fit.error:.3g}', xlabel='x')
    curves.set(title=f'{name} and its fit', xlabel='x')
    curves.axvspan(low, high, color='grey', alpha=0.1)
    for axes in (curves, errors):
        axes.grid(alpha=0.3)
        axes.legend()
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png, dpi=120)


def main():
    args = parse_args()
    name, (low, high) = args.function, args.interval
    if name not in FUNCTIONS and ':' not in name:
        raise ConfigError(
            f'function {name}: must be module:callable, or one of {", ".join(FUNCTIONS)}'
        )
    function = FUNCTIONS.get(name) or load_callable(name, 'function')
    try:
        fit = fit_rational(function, low, high, tuple(args.order))
    except ValueError as error:
        raise ConfigError(f'{name}: {error}') from error
    print(f'largest error on [{low:g}, {high:g}]: {fit.error:.3g}')
    print(f'least possible at order ({args.order[0]}, {args.order[1]}): {fit.bound:.3g}')
    if (low, high) == (-3, 3):
        wide, _ = largest_error(function, fit.numerator, fit.denominator, -6, 6)
        print(f'largest error on [-6, 6]: {wide:.3g}')
    gain = variance_gain(torch.tensor(fit.numerator), torch.tensor(fit.denominator))
    print(f'variance gain: {gain:.4f}')
    print(f'({fit.numerator},\n {fit.denominator})')
    if args.plot:
        plot(name, function, fit, low, high, args.plot)
        print(args.plot)


if __name__ == '__main__':
    cli.run_reporting_errors(main)
