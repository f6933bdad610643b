"""The op where no compiled kernels were built: the plain reference, with one warning."""

import shutil
import subprocess
import sys
from pathlib import Path

import kat_mm

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
    package = Path(kat_mm.__file__).parent
    for name in ('rational', 'checks.py', 'errors.py'):
        copy = shutil.copytree if (package / name).is_dir() else shutil.copy
        (tmp_path / 'kat_mm').mkdir(exist_ok=True)
        copy(package / name, tmp_path / 'kat_mm' / name)
    (tmp_path / 'kat_mm' / '__init__.py').touch()
    result = subprocess.run(
        [sys.executable, '-c', CODE, str(tmp_path)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    [warning] = result.stdout.strip().splitlines()
    assert 'the CPU kernels are not built, which takes a C++ compiler' in warning
    assert 'pip install --no-build-isolation -e .' in warning
