"""Configs as text: source that reads back the same, inheritance, names."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config

from kat_mm.errors import ConfigError
from kat_mm.openmmlab.swap import read_config, write_config
from kat_mm.openmmlab.swap.source import WIDTH, overrides, source

NAMES = st.sampled_from(['a', 'b', 'type', 'in', 'backbone.norm', 'a_long_name_of_a_setting'])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | st.text(max_size=9)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(NAMES, inner, max_size=4)
    ),
    max_leaves=25,
)
CONFIGS = st.dictionaries(st.sampled_from('abcd'), VALUES, max_size=4)


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_source_reads_back_the_same(value):
    again = eval(source(value, 0, 8))
    assert again == value
    assert type(again) is type(value)


def test_source_breaks_long_lines():
    value = {'head': {'type': 'FCNHead', 'channels': list(range(40))}, 'b.c': ({'k': 1},)}
    text = source(value, 0, 8)
    assert eval(text) == value
    assert max(map(len, text.splitlines())) <= WIDTH
    assert source({'a': 1, 'b': (2,)}, 0, 8) == 'dict(a=1, b=(2,))'


@settings(max_examples=100, deadline=None)
@given(CONFIGS, CONFIGS)
def test_a_config_with_the_overrides_is_the_new_one(old, new):
    new = {**dict.fromkeys(old), **new}  # no key of the top level is ever taken away
    merged = Config._merge_a_into_b(Config(overrides(old, new))._cfg_dict, Config(old)._cfg_dict)
    assert Config(merged).to_dict() == new


@pytest.fixture
def base(tmp_path):
    path = tmp_path / 'configs' / 'base.py'
    path.parent.mkdir()
    path.write_text("model = dict(type='A', head=[dict(k=1)], c=dict(d=1, e=2))\ntotal = 3\n")
    return path


def test_what_is_written_inherits_and_says_what_changed(base, tmp_path):
    config, name = read_config(str(base))
    config.model.head[0].k = 2
    del config.model.c['e']
    config.total = None
    out = tmp_path / 'new' / 'config.py'
    write_config(config, name, out, '# a comment\n')
    assert out.read_text() == (
        "# a comment\n_base_ = '../configs/base.py'\n\n"
        'model = dict(head=[dict(k=2)], c=dict(_delete_=True, d=1))\ntotal = None\n'
    )
    assert Config.fromfile(out).to_dict() == config.to_dict()
    with pytest.raises(ConfigError, match=r'config\.py exists already'):
        write_config(config, name, out)


def test_a_base_that_cannot_be_inherited_is_written_as_a_whole(tmp_path):
    lazy = tmp_path / 'lazy.py'
    lazy.write_text('from torch.nn import Conv2d\nmodel = dict(type=Conv2d, k=1)\n')
    config, name = read_config(str(lazy))
    config.model.k = 2
    write_config(config, name, tmp_path / 'new.py')
    text = (tmp_path / 'new.py').read_text()
    assert '_base_' not in text
    assert Config.fromfile(tmp_path / 'new.py').model.k == 2


def test_a_config_without_a_source_is_not_written(base, tmp_path):
    config, name = read_config(str(base))
    config.model.head = object()
    with pytest.raises(ConfigError, match='values without a source'):
        write_config(config, name, tmp_path / 'new.py')
    assert not (tmp_path / 'new.py').exists()


def test_shipped_configs_are_found_by_name_and_by_path():
    name = 'mmdet::_base_/models/fast-rcnn_r50_fpn.py'
    config, base = read_config(name.removesuffix('.py'))
    assert base == name
    assert config.model.type == 'FastRCNN'
    assert config.model._scope_ == 'mmdet'
    import mmdet

    path = f'{mmdet.__path__[0]}/.mim/configs/_base_/models/fast-rcnn_r50_fpn.py'
    assert read_config(path)[1] == name


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('mmdet::detr/detr_r50_8xb2_150e_coco', 'mmdet::detr/detr_r50_8xb2-150e_coco.py'),
        ('configs/detr_r50_8xb2_150e_coco.py', 'mmdet::detr/detr_r50_8xb2-150e_coco.py'),
        ('mmdet::zzzzz', 'zzzzz does not exist; give a path, kat_mm::NAME or mmdet::FOLDER/NAME'),
        ('mmfoo::detr/detr', 'the package mmfoo has no configs or is missing'),
    ],
)
def test_names_of_no_config(name, message):
    with pytest.raises(ConfigError, match=message):
        read_config(name)


def test_a_broken_config_is_reported_in_one_line(tmp_path):
    path = tmp_path / 'broken.py'
    path.write_text('model = dict(\n')
    with pytest.raises(ConfigError, match=r'broken\.py cannot be read: SyntaxError'):
        read_config(str(path))
