"""The op where no compiled kernels were built: the plain reference, with one warning."""

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kat_mm
from kat_mm.rational import loading, schemas
from kat_mm.rational.schemas import MARK

CODE = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    import torch
    from kat_mm.rational import GroupRational, rational_reference
    from kat_mm.rational.op import compiled_devices
    assert compiled_devices() == ()
    layer = GroupRational()
    x = torch.randn(3, 16, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    torch.testing.assert_close(y, x * x.sigmoid(), rtol=1e-4, atol=1e-4)
    assert layer.weight_denominator.grad.shape == (32,) and x.grad.shape == x.shape
print(*(str(w.message) for w in caught if 'kat_mm' in str(w.message)), sep='\\n')
"""


def test_plain_pytorch_runs_with_one_warning(tmp_path):
    package, copies = Path(kat_mm.__file__).parent, tmp_path / 'kat_mm'
    copies.mkdir()
    for name in ('rational', 'checks.py', 'errors.py', 'post_import.py'):
        copy = shutil.copytree if (package / name).is_dir() else shutil.copy
        copy(package / name, copies / name)
    (copies / '__init__.py').touch()
    result = subprocess.run(
        [sys.executable, '-c', CODE, str(tmp_path)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    [warning] = result.stdout.strip().splitlines()
    assert 'the CPU kernels are not built, which takes a C++ compiler' in warning
    assert 'pip install --no-build-isolation -e .' in warning


# What lies in the place of the CPU's library, and what the warning tells of it.
FOUND = {
    '_C_cpu.failed': 'the CPU kernels failed to compile (x.h:7: error: no y; KAT_MM_BUILD=',
    '_C_cpu_0a1b2c3d.abi3.so': 'was built for other Python files of kat_mm than these',
    '_C_cpu.abi3.so': '_C_cpu.abi3.so was built for other Python files of kat_mm than these',
    f'_C_cpu_{MARK}.abi3.so': f'_C_cpu_{MARK}.abi3.so cannot be loaded (',
}


@pytest.mark.parametrize('name', FOUND)
def test_the_warning_says_what_is_wrong(tmp_path, monkeypatch, name):
    (tmp_path / name).write_text('x.h:7: error: no y\n')
    monkeypatch.setattr(loading, 'FOLDER', tmp_path)
    monkeypatch.setattr(torch.version, 'cuda', None)
    with pytest.warns(UserWarning, match='kat_mm: ') as caught:
        loading.load_compiled()
    [text] = [str(warning.message) for warning in caught]
    assert FOUND[name] in text
    assert "'pip install --no-build-isolation -e .'" in text


def test_other_schemas_have_another_mark(tmp_path):
    """A library for the schemas of before is refused without a number that someone must raise."""
    code = Path(schemas.__file__).read_text()
    for name, text in dict(same=code, other=code.replace('channel_dim=-1, ', '', 1)).items():
        (tmp_path / name).write_text(text)
        assert (runpy.run_path(str(tmp_path / name))['MARK'] == MARK) == (name == 'same')
