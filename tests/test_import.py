"""`import kat_mm` where nothing but torch is installed."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CODE = """
import sys, time
sys.path += sys.argv[1:]
import torch
start = time.perf_counter()
import kat_mm
seconds = time.perf_counter() - start
from kat_mm.rational import GroupRational
assert GroupRational()(torch.randn(2, 16)).shape == (2, 16)
try:
    kat_mm.to_kat
except ModuleNotFoundError as error:
    assert 'pip install scipy' in str(error), error
else:
    raise AssertionError('to_kat is there without scipy')
others = {'mmengine', 'mmcv', 'numpy', 'torchvision', 'timm'} & set(sys.modules)
print(seconds, *others)
"""


def needs_of(package: str, found: set[str]) -> set[str]:
    """Names the installed distributions that `package` requires, itself included."""
    try:
        requirements = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return found
    found.add(package)
    for requirement in requirements:
        name = re.match(r'[\w.-]+', requirement)[0]
        if 'extra ==' not in requirement and name not in found:
            needs_of(name, found)
    return found


@pytest.fixture(scope='module')
def torch_alone(tmp_path_factory):
    """A folder of links to torch and what it requires, as a site-packages of its own."""
    folder = tmp_path_factory.mktemp('site')
    for package in needs_of('torch', set()):
        distribution = importlib.metadata.distribution(package)
        for top in {file.parts[0] for file in distribution.files or ()}:
            source = Path(distribution.locate_file(top))
            if source.exists() and top not in ('..', '__pycache__'):
                link = folder / top
                if not link.exists():
                    link.symlink_to(source)
    return folder


@pytest.mark.slow
def test_import_with_torch_alone(torch_alone):
    if not Path(torch.__file__).is_relative_to(Path(sys.prefix)):
        pytest.skip('torch is not installed in this environment')
    root = Path(__file__).parent.parent
    runs = []
    for _ in range(3):
        command = [sys.executable, '-I', '-S', '-c', CODE, str(root), str(torch_alone)]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        seconds, *others = result.stdout.split()
        assert not others
        runs.append(float(seconds))
    assert min(runs) < 0.3
