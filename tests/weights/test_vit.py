import ast
from pathlib import Path

import pytest

from kat_mm import weights
from kat_mm.weights.activation_fits import ACTIVATIONS, FITS, INTERVAL


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_stored_fits_are_the_best_ones(name):
    pytest.importorskip('scipy')
    from kat_mm.fitting.fit import fit_rational, largest_error

    best, stored = fit_rational(ACTIVATIONS[name], -INTERVAL, INTERVAL), FITS[name]
    assert stored.numerator == pytest.approx(best.numerator, rel=1e-6)
    assert stored.denominator == pytest.approx(best.denominator, rel=1e-6)
    coefficients = stored.numerator, stored.denominator
    error, _ = largest_error(ACTIVATIONS[name], *coefficients, -INTERVAL, INTERVAL)
    assert error == pytest.approx(stored.error, rel=1e-6)
    assert error <= best.bound * 1.001


def test_weights_know_no_network_and_take_no_fitting():
    for path in Path(weights.__file__).parent.glob('*.py'):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        ours = {
            node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level > 1
        }
        assert {name.partition('.')[0] for name in ours} <= {'rational', 'errors', 'checks'}, path
