"""Configs that inherit from those of packages, ours and OpenMMLab's."""

import sys
from pathlib import Path
from types import SimpleNamespace

import mmdet
import pytest
from mmengine.config import Config

import kat_mm.openmmlab  # noqa: F401
from kat_mm.errors import ConfigError
from kat_mm.openmmlab import config_names

CONFIGS = Path(__file__).parents[3] / 'configs'


@pytest.fixture
def inherit(tmp_path):
    """Reads a config that inherits another one."""

    def inherit(base: str) -> Config:
        path = tmp_path / 'child.py'
        path.write_text(f'_base_ = {base!r}\n')
        return Config.fromfile(path)

    return inherit


@pytest.mark.parametrize(
    'name', ['kat_maskrcnn_coco.py', 'coco/kat_tiny_maskrcnn_coco.py', '_base_/upernet.py']
)
def test_ours_mean_what_they_mean_by_their_path(inherit, name):
    expected = inherit(str(CONFIGS / name)).to_dict()
    assert inherit(f'kat_mm::{name}').to_dict() == expected
    assert inherit(f'kat_mm::{name}'.removesuffix('.py')).to_dict() == expected


def test_a_name_that_is_none_of_ours(inherit):
    with pytest.raises(ConfigError, match=r'did you mean kat_mm::coco/kat_tiny_maskrcnn_coco\.py'):
        inherit('kat_mm::coco/kat_tiny_maskrcn_coco.py')


def test_others_need_no_pkg_resources(inherit, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pkg_resources', None)
    name = '_base_/models/mask-rcnn_r50_fpn.py'
    assert inherit(f'mmdet::{name}').model._scope_ == 'mmdet'
    path = Path(mmdet.__path__[0], '.mim', 'configs', name)
    assert Config._get_cfg_path(f'mmdet::{name}', '') == (str(path), 'mmdet')


def test_what_is_nowhere_is_left_to_mmengine(inherit):
    with pytest.raises(AssertionError, match='mmengine does not support to load'):
        inherit('nowhere::models/resnet.py')


def test_wheels_and_clones(monkeypatch, tmp_path):
    root = tmp_path / 'kat_mm'
    monkeypatch.setattr(
        config_names, 'find_spec', lambda name: SimpleNamespace(origin=root / '__init__.py')
    )
    assert config_names.configs_of('kat_mm') is None
    (tmp_path / 'configs').mkdir()
    assert config_names.configs_of('kat_mm') == tmp_path / 'configs'
    assert config_names.configs_of('mmdet') is None
    (root / '.mim' / 'configs').mkdir(parents=True)
    assert config_names.configs_of('kat_mm') == root / '.mim' / 'configs'
