import pytest
import torch

from kat_mm.rational.coefficients import FITS, FUNCTIONS, evaluate
from kat_mm.rational.fitting import fit_rational, largest_error


@pytest.mark.parametrize(
    ('name', 'order'), [('gelu', (5, 4)), ('gelu', (6, 4)), ('swish', (5, 4)), ('relu', (5, 4))]
)
def test_finds_the_shipped_fits(name, order):
    fit = fit_rational(FUNCTIONS[name], order=order)
    shipped, _ = largest_error(FUNCTIONS[name], *FITS[name][order], -3, 3)
    assert fit.error <= shipped * 1.01
    assert fit.bound <= fit.error <= fit.bound * 1.01
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


@pytest.mark.parametrize(
    ('function', 'interval', 'order', 'message'),
    [
        (torch.sqrt, (-3, 3), (5, 4), r'not finite at -3, in \[-3, 3\]'),
        (torch.sum, (-3, 3), (5, 4), r'one value for each x in \[-3, 3\]'),
        (torch.tanh, (3, 3), (5, 4), 'low < high, got 3, 3'),
        (torch.tanh, (-3, float('inf')), (5, 4), 'two finite numbers'),
        (torch.tanh, (-3, 3), (9, 4), r'between 1 and 8, got \(9, 4\)'),
    ],
)
def test_errors(function, interval, order, message):
    with pytest.raises(ValueError, match=message):
        fit_rational(function, *interval, order)
