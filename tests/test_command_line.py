import pytest

from kat_mm.command_line import load_callable
from kat_mm.errors import ConfigError
from kat_mm.rational.reference import rational_reference


def test_loads_a_function():
    assert (
        load_callable('kat_mm.rational.reference:rational_reference', '--provider')
        is rational_reference
    )


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('my_ops', 'must be module:callable, such as my_ops.rational:rational'),
        (':rational', 'must be module:callable'),
        ('my_ops:', 'must be module:callable'),
        ('my_ops:a b', 'must be module:callable'),
        (
            'my_gone_ops:rational',
            r"my_gone_ops cannot be imported \(ModuleNotFoundError: No module named 'my_gone_ops'"
            r'\); its folder must be in PYTHONPATH',
        ),
        (
            'kat_mm.rational:rationel',
            'kat_mm.rational has no function rationel; it has: rational, ',
        ),
    ],
)
def test_names_that_cannot_be_loaded(name, message):
    with pytest.raises(ConfigError, match=f'--provider {name}: {message}'):
        load_callable(name, '--provider')
