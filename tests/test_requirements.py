"""requirements.txt and the extras of setup.py list what is imported; constraints.txt pins it."""

import ast
import re

import pytest
from imports import ROOT, third_parties

DISTRIBUTIONS = {  # whose names differ from those of their modules
    'PIL': 'pillow',
    'cv2': 'opencv-python',
    'mmcv': 'mmcv-lite',
    'mmseg': 'mmsegmentation',
    'sklearn': 'scikit-learn',
}
WITH_TORCH = {'triton'}  # which torch for a GPU brings
NOT_IMPORTED = {'ftfy', 'regex', 'setuptools', 'pip', 'wheel', 'ninja'}  # by files of ours
OPENMMLAB = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'onedl')


def required(lines: list[str]) -> set[str]:
    return {re.match(r'[\w-]+', line)[0] for line in lines if line and not line.startswith('#')}


def lines(name: str) -> list[str]:
    return (ROOT / name).read_text().splitlines()


def setup_value(name: str):
    """Returns a constant of setup.py, or an argument that it gives to setup()."""
    for node in ast.walk(ast.parse((ROOT / 'setup.py').read_text())):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
        if isinstance(node, ast.keyword) and node.arg == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f'setup.py has no {name}')


EXTRAS = {name: required(packages) for name, packages in setup_value('EXTRAS').items()}


def test_requirements_are_what_is_imported():
    imported = third_parties('kat_mm') | third_parties('tools')
    imported = {DISTRIBUTIONS.get(name, name) for name in imported}
    assert (
        required(lines('requirements.txt'))
        == (imported - EXTRAS['export'] - WITH_TORCH) | NOT_IMPORTED
    )


def test_setup_leaves_the_choice_of_openmmlab_to_the_user():
    assert setup_value('install_requires') == ['torch']
    listed = set().union(*EXTRAS.values())
    assert not [name for name in listed if name.startswith(OPENMMLAB)]


@pytest.mark.parametrize('extra', EXTRAS)
def test_extras_are_not_required(extra):
    assert not EXTRAS[extra] & required(lines('requirements.txt'))


def test_everything_is_pinned():
    pinned = {re.split('==', line)[0] for line in lines('.ci/constraints.txt')}
    assert required(lines('requirements.txt')).union(*EXTRAS.values()) <= pinned
