import pytest
from PIL import Image

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('out', [None, 'pictures/loss.png'])
def test_curves_of_a_run(trained, run_tool, tmp_path, out):
    run = run_tool(tmp_path, 'plot_training.py', trained[1], *(['--out', out] if out else []))
    path = tmp_path / out if out else trained[1] / 'curves.png'
    assert run.ended_well().stdout == f'{out or path}\n'
    assert Image.open(path).size == (1200, 480)
