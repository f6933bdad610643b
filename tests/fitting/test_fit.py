import numpy as np
import pytest
import torch
from torch import nn

from kat_mm.fitting.fit import fit_rational, fit_samples, largest_error, rms_error
from kat_mm.rational.coefficients import FITS, FUNCTIONS, evaluate

SLOW_FITS = {('relu', (7, 6)), ('leaky_relu', (5, 4)), ('leaky_relu', (7, 6))}  # as relu's
SHIPPED = {(name, order) for name in FITS for order in FITS[name]} - SLOW_FITS
FP32 = 6e-8  # the rounding of numbers near 1, below which no fit is better than another


@pytest.mark.parametrize(('name', 'order'), sorted(SHIPPED))
def test_finds_the_shipped_fits(name, order):
    end = 4 if name == 'hardswish' else 3
    fit = fit_rational(FUNCTIONS[name], -end, end, order)
    shipped, _ = largest_error(FUNCTIONS[name], *FITS[name][order], -end, end)
    assert abs(fit.error - shipped) <= 0.01 * shipped + FP32
    assert fit.bound <= fit.error <= fit.bound * 1.01 + FP32
    assert all(b >= 0 for b in fit.denominator)


def test_the_error_equioscillates():
    """The best fit of a smooth function reaches its largest error more often than it has zeros."""
    fit = fit_rational(torch.sin, 0, 3, (3, 2))
    x = torch.linspace(0, 3, 100_001, dtype=torch.float64)
    coefficients = (torch.tensor(c, dtype=x.dtype) for c in (fit.numerator, fit.denominator))
    error = evaluate(x, *coefficients) - x.sin()
    signs = error[error.abs() > 0.98 * fit.error].sign()
    assert (signs.diff() != 0).sum() + 1 >= 5  # free coefficients, and one


def test_no_random_coefficients_are_below_the_bound():
    torch.manual_seed(0)
    fit = fit_rational(torch.tanh, -2, 4, (3, 2))
    for _ in range(40):
        a = torch.tensor(fit.numerator) * (1 + 0.01 * torch.randn(4))
        b = (torch.tensor(fit.denominator) * (1 + 0.01 * torch.randn(2))).abs()
        error, _ = largest_error(torch.tanh, a.tolist(), b.tolist(), -2, 4)
        assert error >= fit.bound
    assert fit.bound > 0


def test_a_rational_function_is_found():
    def function(x):
        return (1 + 2 * x - x**2) / (1 + 3 * x.abs())

    fit = fit_rational(function, -5, 5, (2, 1))
    assert fit.numerator == pytest.approx((1, 2, -1), rel=1e-6)
    assert fit.denominator == pytest.approx((3,), rel=1e-6)
    assert fit.error < 1e-7


def test_an_interval_of_whole_numbers():
    """Whose powers are beyond what 64-bit integers hold."""
    whole = fit_rational(torch.relu, -1000, 1000, (8, 1))
    assert whole == fit_rational(torch.relu, -1000.0, 1000.0, (8, 1))
    assert whole.error <= whole.bound * 1.01


def normal_samples(low=-8.0, high=8.0, mean=-0.5, std=0.8):
    """Points of an interval, and how many of many samples of a normal distribution are there."""
    x = np.linspace(low, high, 2001)
    return x, 1e6 * np.exp(-0.5 * ((x - mean) / std) ** 2)


@pytest.mark.parametrize('name', ['gelu', 'swish', 'relu'])
@pytest.mark.parametrize('order', [(5, 4), (8, 8)])
def test_a_fit_to_samples_is_closer_to_most_of_them(name, order):
    x, counts = normal_samples()
    minimax = fit_rational(FUNCTIONS[name], x[0], x[-1], (5, 4))
    fit = fit_samples(FUNCTIONS[name], x, counts, order)
    assert (len(fit.numerator), len(fit.denominator)) == (order[0] + 1, order[1])
    assert all(b >= 0 for b in fit.denominator)
    rms, minimax_rms = (
        rms_error(FUNCTIONS[name], each.numerator, each.denominator, x, counts)
        for each in (fit, minimax)
    )
    assert rms < minimax_rms / 2
    error, _ = largest_error(FUNCTIONS[name], fit.numerator, fit.denominator, -8, 8)
    assert fit.error == pytest.approx(error)
    assert fit.error < (1 if name == 'relu' else 0.1)  # where there are hardly any samples


def test_rms_error_is_that_of_the_samples():
    samples = torch.tensor([-1.0, 0.5, 0.5, 2.0], dtype=torch.float64)
    fit = fit_rational(torch.sin, -1, 2, (3, 2))
    coefficients = (torch.tensor(c) for c in (fit.numerator, fit.denominator))
    expected = (evaluate(samples, *coefficients) - samples.sin()).square().mean().sqrt().item()
    points, counts = np.array([-1, 0.5, 1, 2]), np.array([1, 2, 0, 1])
    rms = rms_error(torch.sin, fit.numerator, fit.denominator, points, counts)
    assert rms == pytest.approx(expected, rel=1e-4)


def test_a_rational_function_is_found_from_samples():
    fit = fit_samples(nn.functional.softsign, *normal_samples(), (2, 2))
    assert fit.numerator == pytest.approx((0, 1, 0), abs=1e-8)
    assert fit.denominator == pytest.approx((1, 0), abs=1e-8)


@pytest.mark.parametrize(
    ('function', 'interval', 'order', 'message'),
    [
        (torch.sqrt, (-3, 3), (5, 4), r'not finite at -3, in \[-3, 3\]'),
        (torch.sum, (-3, 3), (5, 4), r'one value for each x in \[-3, 3\]'),
        (torch.dot, (-3, 3), (5, 4), r'fails for a tensor of 1001 points in \[-3, 3\] \(TypeErr'),
        (torch.tanh, (-1e5, 1), (5, 8), r'powers up to 8 of x in \[-100000, 1\] are beyond'),
        (torch.exp, (0, 500), (5, 4), 'coefficients are beyond the range of fp32'),
        (torch.tanh, (3, 3), (5, 4), 'low < high, got 3, 3'),
        (torch.tanh, (-3, float('inf')), (5, 4), 'two finite numbers'),
        (torch.tanh, (-3, 3), (9, 4), r'between 1 and 8, got \(9, 4\)'),
    ],
)
def test_errors(function, interval, order, message):
    with pytest.raises(ValueError, match=message):
        fit_rational(function, *interval, order)
