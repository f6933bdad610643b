"""The module `mmcv._ext`: who provides it, when, and what it does about ops it has not."""

import importlib.machinery
import importlib.util
import subprocess
import sys
import textwrap

import mmcv.ops
import pytest
import torch
from mmcv.ops import RoIPool
from mmengine.utils.dl_utils import mmcv_full_available

import kat_mm.openmmlab.compat


def run(code, *args):
    """Output of `code` in a fresh Python."""
    result = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(code), *map(str, args)],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_spec_names_a_real_file():
    spec = importlib.util.find_spec('mmcv._ext')
    assert spec.origin.endswith('mmcv_ext.py')
    assert mmcv_full_available()


def test_other_names_are_not_answered():
    assert importlib.util.find_spec('mmcv._ext2') is None
    assert importlib.util.find_spec('mmcv.ops._ext') is None


def test_install_twice_adds_one_finder():
    kat_mm.openmmlab.compat.install()
    kat_mm.openmmlab.compat.install()
    ours = [i for i, f in enumerate(sys.meta_path) if type(f).__name__ == 'MmcvExtFinder']
    assert len(ours) == 1
    # Behind the one that finds a compiled mmcv; other packages may append theirs later.
    assert ours[0] > sys.meta_path.index(importlib.machinery.PathFinder)


def test_ops_not_supplied_say_so():
    with pytest.raises(NotImplementedError, match=r"'roi_pool_forward'.*compiled.*softnms"):
        RoIPool(2)(torch.rand(1, 4, 4, 4), torch.zeros(1, 5))


def test_every_op_of_mmcv_is_supplied_or_raises():
    ext = sys.modules['mmcv._ext']
    for name in ('bbox_overlaps', 'nms_rotated', 'roi_pool_forward', 'correlation_forward'):
        with pytest.raises(NotImplementedError, match=f"mmcv op '{name}' needs a compiled mmcv"):
            getattr(ext, name)(torch.rand(1))
    for name in ext.__all__:
        assert getattr(ext, name).__module__.startswith('kat_mm.openmmlab.compat.mmcv_ops.')


def test_probed_attributes_are_missing():
    ext = sys.modules['mmcv._ext']
    for name in ('__path__', '__wrapped__', '_repr_html_'):
        with pytest.raises(AttributeError, match=name):
            getattr(ext, name)


def test_environment_report():
    assert 'torchvision' in mmcv.ops.get_compiler_version()
    assert mmcv.ops.get_compiling_cuda_version() == 'none'


def test_compiled_mmcv_takes_precedence(tmp_path):
    (tmp_path / '_ext.py').write_text('nms = "compiled"\n')
    code = """
        import sys
        import kat_mm.openmmlab.compat
        kat_mm.openmmlab.compat.install()
        import mmcv
        mmcv.__path__.append(sys.argv[1])
        import mmcv._ext
        print(mmcv._ext.nms)
        """
    assert run(code, tmp_path).strip() == 'compiled'


def test_without_torchvision_there_are_no_ops(monkeypatch):
    monkeypatch.delitem(sys.modules, 'mmcv._ext')
    monkeypatch.setitem(sys.modules, 'torchvision', None)
    assert importlib.util.find_spec('mmcv._ext') is None
