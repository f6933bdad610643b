"""What `import kat_mm` needs, and what it leaves alone."""

import importlib.metadata
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
CODE = """
import sys, time
sys.path += sys.argv[1:]
import torch
start = time.perf_counter()
import kat_mm
seconds = time.perf_counter() - start
from kat_mm.rational import GroupRational
assert GroupRational()(torch.randn(2, 16)).shape == (2, 16)
from kat_mm.models import KAT
network = KAT(dict(embed_dims=16, num_layers=2, num_heads=2), 32, pyramid=(8, 8, 8, 8))
assert network(torch.randn(1, 3, 32, 48))[0].shape == (1, 8, 8, 12)
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
    runs = []
    for _ in range(3):
        command = [sys.executable, '-I', '-S', '-c', CODE, str(ROOT), str(torch_alone)]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        seconds, *others = result.stdout.split()
        assert not others
        runs.append(float(seconds))
    assert min(runs) < 0.3


def python(code, *paths):
    """Output of `code` in a fresh Python."""
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, (*paths, ROOT)))}
    command = [sys.executable, '-W', 'error::RuntimeWarning:kat_mm', '-c', textwrap.dedent(code)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


# All that a package can be changed in: the objects that its modules, their classes, and the
# registries and lists in them hold. Each name is told with the identity of its object.
SNAPSHOT = """
import sys
from types import ModuleType

OTHERS = ('torch', 'numpy', 'mmengine', 'mmcv', 'timm')
KEPT = []  # so that no identity is used twice

def names_of(owner, path, found):
    for name, value in list(vars(owner).items()):
        if name in ('__warningregistry__', '__doc__') or name.startswith('_abc_'):
            continue
        found[f'{path}.{name}'] = id(value)
        KEPT.append(value)
        if isinstance(value, type) and path == value.__module__:
            names_of(value, f'{path}.{name}', found)
        if isinstance(value, (list, dict, set)) and not name.startswith('__'):
            found[f'{path}.{name} has'] = len(value)

def snapshot():
    found = {}
    for name, module in list(sys.modules.items()):
        if name.partition('.')[0] in OTHERS and isinstance(module, ModuleType):
            names_of(module, name, found)
    return found

def state():
    import pickle, warnings
    import torch
    from mmengine.runner import CheckpointLoader
    return dict(
        safe_globals=set(map(repr, torch.serialization.get_safe_globals())),
        loaders=dict(CheckpointLoader._schemes),
        path_hooks=list(sys.path_hooks),
        filters=list(warnings.filters),
        meta_path=[f for f in sys.meta_path if not type(f).__module__.startswith('kat_mm')],
    )
"""


@pytest.mark.slow
def test_import_changes_no_other_package(tmp_path):
    """Except for timm, which gets models, all that other packages hold is the same object."""
    pytest.importorskip('timm')
    code = """
        import sys
        from changes import *
        import numpy, torch, mmengine.runner, mmcv.cnn.bricks.transformer, timm
        import torch.nn.functional, mmengine.hooks, mmengine.infer

        array = numpy.arange(3.0)
        torch.save({'array': array}, sys.path[1] + '/numpy.pth')
        real = [numpy.ndarray, numpy.dtype, numpy._core.multiarray._reconstruct,
                numpy.dtypes.Float64DType]

        def load(allowed):
            with torch.serialization.safe_globals(allowed):
                try:
                    return type(torch.load(sys.path[1] + '/numpy.pth')['array'])
                except Exception as error:
                    return type(error)

        def behaviour():
            return load(real), load([])

        assert behaviour()[0] is numpy.ndarray
        before, known, names = behaviour(), state(), snapshot()
        modules = set(sys.modules)
        import kat_mm
        ours = [f for f in sys.meta_path if type(f).__module__.startswith('kat_mm')]
        assert len(ours) == 1
        asked = ['timm', 'mmcv._ext', 'mmdet.models', 'mmengine.runner', 'nothing']
        assert not [name for name in asked if ours[0].find_spec(name)]
        assert behaviour() == before
        assert state() == known
        after = snapshot()
        changed = {name for name in names if after[name] != names[name]}
        own = (
            'torch.fx._symbolic_trace._wrapped_fns_to_patch',  # fx.wrap of a function of ours
            'torch.library.', 'torch.ops.', 'torch.jit._builtins.',  # the op
            'torch._weights_only_unpickler._marked_safe_globals_set',  # by behaviour() above
            'timm.models._registry.',
            'timm.layers._fx._leaf_modules',  # an attention of ours, which torch.fx takes whole
        )
        assert not [name for name in changed if not name.startswith(own)], changed
        added = [n for n in after if n not in names and n.rpartition('.')[0] in modules]
        assert added == ['torch.ops.kat_mm'], added
        assert timm.list_models('kat_*')
        """
    (tmp_path / 'changes.py').write_text(SNAPSHOT)
    python(code, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('first', ['timm', 'kat_mm'])
def test_timm_knows_the_models(first):
    pytest.importorskip('timm')
    second = {'timm': 'kat_mm', 'kat_mm': 'timm'}[first]
    code = f"import {first}, {second}; import timm; print(*timm.list_models(['kat_*', 'karat_*']))"
    sizes = ('base', 'small', 'tiny')
    assert python(code).split() == [
        f'{kind}_{size}_patch16_224' for kind in ('karat', 'kat') for size in sizes
    ]


OLD_TIMM = {
    'without what kat_mm needs': '',
    'with something else of the name': 'build_model_with_cfg = generate_default_cfgs = None\n',
    'that fails by itself later': 'def __getattr__(name):\n    raise ValueError(name)\n',
}


@pytest.mark.parametrize('models', OLD_TIMM.values(), ids=OLD_TIMM)
@pytest.mark.parametrize('first', ['timm', 'kat_mm'])
def test_an_old_timm_is_left_alone(models, first, tmp_path):
    (tmp_path / 'timm' / 'models').mkdir(parents=True)
    (tmp_path / 'timm' / '__init__.py').write_text('from . import models\n')
    (tmp_path / 'timm' / 'models' / '__init__.py').write_text(models)
    code = f"""
        import sys, warnings
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter('always')
            import {first}
            import kat_mm, timm.models
        texts = [str(w.message) for w in seen if 'kat_mm' in str(w.message)]
        assert len(texts) == 1, texts
        assert texts[0].startswith('kat_mm cannot register its models with timm ('), texts
        assert 'Error: ' in texts[0] and 'upgrade timm or kat_mm' in texts[0], texts
        assert timm.models.__file__.startswith(sys.path[1])
        names = {{name for name in vars(timm.models) if not name.startswith('__')}}
        assert names <= {{'build_model_with_cfg', 'generate_default_cfgs'}}, names
        """
    python(code, tmp_path)


NOT_NEEDED = ('scipy', 'sklearn', 'matplotlib', 'resource')


@pytest.mark.slow
@pytest.mark.parametrize('name', ['kat_mm', 'kat_mm.models', 'kat_mm.weights', 'kat_mm.openmmlab'])
def test_imports_do_without(name):
    """Where these packages are missing, as `resource` is on Windows, imports succeed."""
    code = f"""
        import sys
        sys.modules.update(dict.fromkeys({NOT_NEEDED}))
        import {name}
        """
    python(code)
