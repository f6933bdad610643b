"""Imports of kat_mm run one way: rational <- attention, weights, fitting <- models <- openmmlab."""

import pytest
from imports import imports, modules, third_parties

OPENMMLAB = {'mmengine', 'mmcv', 'mmdet', 'mmseg'}
PARTS = {'rational', 'attention', 'weights', 'fitting'}
CORE = {*PARTS, 'models'}
USES = {  # what each package of kat_mm may import of the others
    'rational': set(),
    'attention': {'rational'},
    'weights': {'rational'},
    'fitting': {'rational', 'attention'},
    'segmentation': {'rational'},
    'detection': {'rational'},
    'graphs': {'rational'},
    'models': PARTS,
    'analysis': {'rational', 'attention', 'models'},
    'openmmlab': {*CORE, 'segmentation', 'detection', 'graphs', 'analysis'},
    'benchmarking': CORE,
    'digits': CORE,
}
MODULES = modules('kat_mm')
# Modules beside the packages belong to no layer; all may import them, and they import no package.
SHARED = {name.split('.')[1] for name in MODULES if name.count('.') == 1} - {'__init__'}


def imported(package: str) -> set[tuple[str, str]]:
    """Returns (module, what it imports) for the modules of a package, or one beside them."""
    names = [name for name in MODULES if name.split('.')[1] == package]
    return {(name, target) for name in names for target in imports(name, MODULES[name])}


def test_every_package_has_its_place():
    packages = {name.split('.')[1] for name in MODULES if name.count('.') > 1}
    assert packages == set(USES)


@pytest.mark.parametrize('package', [*USES, *sorted(SHARED)])
def test_imports_run_one_way(package):
    allowed = {package, *SHARED, *USES.get(package, ())}
    ours = {(name, target) for name, target in imported(package) if target.startswith('kat_mm.')}
    assert not {(name, target) for name, target in ours if target.split('.')[1] not in allowed}


@pytest.mark.parametrize('package', sorted({'__init__', *USES, *SHARED} - {'openmmlab'}))
def test_openmmlab_stays_in_its_room(package):
    pairs = imported(package)
    assert not {(name, target) for name, target in pairs if target.split('.')[0] in OPENMMLAB}


def test_analyses_take_torch_and_numpy_alone():
    assert third_parties('kat_mm/analysis') <= {'torch', 'numpy', 'matplotlib'}
    pictures = {
        name
        for name, target in imported('analysis')
        if target.partition('.')[0] == 'matplotlib' or '.plot_' in target
    }
    assert all(name.rpartition('.')[2].startswith('plot_') for name in pictures)
