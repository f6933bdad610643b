import ast

import pytest
from PIL import Image

from kat_mm.rational import GroupRational


def test_prints_a_row_that_the_layer_takes(run_tool, tmp_path):
    out = run_tool(
        tmp_path, 'fit_rational.py', 'gelu', '--order', 6, 4, '--plot', 'plots/gelu.png'
    ).ended_well()
    lines = out.stdout.splitlines()
    assert lines[0] == 'largest error on [-3, 3]: 4.42e-05'
    assert lines[1] == 'least possible at order (6, 4): 4.42e-05'
    assert lines[2].startswith('largest error on [-6, 6]: 0.2')
    init = ast.literal_eval(''.join(lines[4:6]))
    layer = GroupRational(init=init, order=(6, 4))
    assert layer.numerator.shape == (1, 7)
    assert Image.open(tmp_path / 'plots' / 'gelu.png').size == (1320, 540)


def test_fits_a_function_of_the_users(run_tool, tmp_path):
    run = run_tool(tmp_path, 'fit_rational.py', 'torch:erf', '--interval', 0, 2).ended_well()
    assert 'largest error on [0, 2]: ' in run.stdout
    assert '[-6, 6]' not in run.stdout


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['gelo'], 'function gelo: must be module:callable, or one of identity, relu'),
        (['torch:nope'], 'function torch:nope: torch has no function nope'),
        (['torch:sqrt'], 'torch:sqrt: the function is not finite at -3, in [-3, 3]'),
        (
            ['torch:matmul'],
            'torch:matmul: the function fails for a tensor of 1001 points in [-3, 3] (',
        ),
        (['torch:zeros_like'], 'an activation that is zero everywhere has no variance gain'),
        (['gelu', '--order', 9, 4], 'order (m, n) must lie between 1 and 8, got (9, 4)'),
        (['gelu', '--interval', 0, 1e-300], 'powers up to 5 of x in [0, 1e-300] are beyond the'),
        (['torch:exp', '--interval', 0, 500], 'coefficients are beyond the range of fp32'),
        (['gelu', '--plot', 'gelu.xyz'], '--plot gelu.xyz: the name must end with .png'),
        (['gelu', '--plot', '/dev/null/a.png'], '--plot /dev/null/a.png: cannot be written (File'),
    ],
)
def test_errors(run_tool, tmp_path, arguments, message):
    assert message in run_tool(tmp_path, 'fit_rational.py', *arguments).error()
