"""mmcv's FFN by type, and as it always was without one."""

import copy
import inspect
import pickle
import subprocess
import sys

import pytest
import torch
from mmcv.cnn.bricks.transformer import FFN
from mmengine.registry import MODELS, DefaultScope

import kat_mm
from kat_mm.openmmlab import GRKAN

SIZES = dict(embed_dims=16, feedforward_channels=32)


class Narrow(FFN):
    """A subclass whose arguments are its own, a `type` among them."""

    count = 0

    def __init__(self, embed_dims, type='half'):
        super().__init__(embed_dims, embed_dims // 2)
        self.kind = type
        Narrow.count += 1


@pytest.fixture
def registered():
    MODELS.register_module(module=Narrow)
    yield
    MODELS.module_dict.pop('Narrow')


def test_by_type():
    layer = FFN(
        type='GRKAN', activation=dict(num_groups=4), num_fcs=2, act_cfg=dict(type='ReLU'), **SIZES
    )
    assert type(layer) is GRKAN
    assert layer.fc1.out_features == 32
    assert layer.act1.num_groups == 4


@pytest.mark.parametrize('kind', ['FFN', FFN])
def test_its_own_type(kind):
    layer = FFN(type=kind, **SIZES)
    assert type(layer) is FFN
    assert layer.feedforward_channels == 32


def test_a_subclass_by_type_is_initialised_once(registered):
    Narrow.count = 0
    layer = FFN(type='Narrow', embed_dims=16)
    assert type(layer) is Narrow
    assert Narrow.count == 1


def test_types_of_the_scope_in_use():
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert type(FFN(type='GRKAN', **SIZES)) is GRKAN


def test_an_unknown_type_is_named():
    with pytest.raises(KeyError, match='GRKANN'):
        FFN(type='GRKANN', **SIZES)


def test_without_a_type_it_is_as_ever():
    layer = FFN(16, 32, num_fcs=2)
    x = torch.randn(3, 16)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(twin) is FFN
        assert torch.equal(twin(x), layer(x))
    assert isinstance(layer, FFN)
    assert type(MODELS.build(dict(type='FFN', **SIZES))) is FFN
    assert str(inspect.signature(FFN)).startswith('(embed_dims=256, feedforward_channels=1024, ')
    with pytest.raises(TypeError, match='unexpected keyword argument'):
        FFN(16, 32, kind='GRKAN')


def test_subclasses_are_as_ever():
    assert Narrow(16, type='own').kind == 'own'
    assert str(inspect.signature(Narrow)) == "(embed_dims, type='half')"
    assert issubclass(Narrow, FFN)


@pytest.mark.slow
def test_mmcv_imported_first():
    code = (
        'from mmcv.cnn.bricks.transformer import FFN; import kat_mm.openmmlab; '
        f"print(type(FFN(type='GRKAN', **{SIZES})).__name__)"
    )
    command = [sys.executable, '-W', 'ignore', '-c', code]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout == 'GRKAN\n', result.stderr


def test_install_twice_changes_it_once():
    metaclass = type(FFN)
    kat_mm.openmmlab.compat.install()
    assert type(FFN) is metaclass
