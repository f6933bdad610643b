"""Fits P(x) / Q(x) to a function as well as can be: tools/fit_rational.py gelu --order 6 4

P has degree m and Q = 1 + |b1||x| + ... + |bn||x|^n, as the op computes it. Prints the largest
error, a bound that no coefficients of this order are below, and the coefficients as GroupRational
takes them: init=(numerator, denominator).
"""

import argparse
from pathlib import Path

import torch

from kat_mm.command_line import check_file, load_callable, run_reporting_errors
from kat_mm.errors import ConfigError
from kat_mm.fitting.fit import fit_rational, largest_error
from kat_mm.rational.coefficients import FUNCTIONS, evaluate, variance_gain


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


def main():
    args = parse_args()
    name, (low, high) = args.function, args.interval
    if args.plot:
        check_file('--plot', args.plot, '.png')
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
    coefficients = torch.tensor(fit.numerator), torch.tensor(fit.denominator)
    print(f'variance gain: {variance_gain(lambda z: evaluate(z, *coefficients)):.4f}')
    print(f'({fit.numerator},\n {fit.denominator})')
    if args.plot:
        from kat_mm.fitting.plot import plot_fit  # takes matplotlib

        plot_fit(name, function, fit, low, high, args.plot)
        print(args.plot)


if __name__ == '__main__':
    run_reporting_errors(main)
