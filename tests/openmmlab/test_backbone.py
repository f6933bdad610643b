"""KAT as mm builds it: the registry, init_cfg and pretrained, errors for arguments that moved."""

import copy
import inspect
import re

import pytest
import torch
from kats import randomise
from mmengine.registry import MODELS

from kat_mm import models
from kat_mm.errors import ConfigError, DataError
from kat_mm.models.arguments import MOVED
from kat_mm.openmmlab import KAT

SMALL = {'embed_dims': 48, 'num_layers': 4, 'num_heads': 3, 'feedforward_channels': 64}


def small(**kwargs):
    torch.manual_seed(0)
    return KAT(**{'arch': SMALL, 'img_size': 64, **kwargs})


def test_registered_in_the_root_registry():
    for name in ('KAT', 'GRKAN', 'GroupRational', 'SimplePyramid'):
        assert MODELS.get(name) is not None
    model = MODELS.build({'type': 'KAT', 'arch': SMALL})
    assert isinstance(model, KAT)


def test_initialisation_survives_init_weights():
    model = small()
    before = copy.deepcopy(model.state_dict())
    model.init_weights()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_pretrained_weights_load_through_init_cfg(tmp_path):
    source = randomise(small())
    path = str(tmp_path / 'kat.pth')
    torch.save({'state_dict': source.state_dict()}, path)
    model = small(init_cfg={'type': 'Pretrained', 'checkpoint': path})
    model.init_weights()
    for key, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key
    wrong = KAT({**SMALL, 'embed_dims': 96}, init_cfg={'type': 'Pretrained', 'checkpoint': path})
    with pytest.raises(DataError, match=r'kat\.pth is of another architecture: blocks\.0'):
        wrong.init_weights()


@pytest.fixture
def warnings(monkeypatch):
    texts = []
    monkeypatch.setattr('kat_mm.openmmlab.backbone.print_log', lambda text, *_: texts.append(text))
    return texts


@pytest.mark.parametrize(
    'name', ['open-mmlab://resnet50_v1c', 'torchvision://resnet50', 'mmcls://mobilenet_v2']
)
def test_pretrained_weights_of_other_backbones_are_ignored_with_a_warning(name, warnings):
    assert small(pretrained=name).init_cfg is None
    assert len(warnings) == 1
    assert name in warnings[0]
    assert "backbone.init_cfg=dict(type='Pretrained'" in warnings[0]
    init_cfg = {'type': 'Pretrained', 'checkpoint': 'kat.pth'}
    assert small(pretrained=name, init_cfg=init_cfg).init_cfg == init_cfg


def test_pretrained_weights_of_kat_load(tmp_path, warnings):
    source = randomise(small())
    path = str(tmp_path / 'kat.pth')
    torch.save(source.state_dict(), path)
    model = small(pretrained=path)
    model.init_weights()
    assert torch.equal(model.pos_embed, source.pos_embed)
    assert not warnings
    small(pretrained=None)
    with pytest.raises(ValueError, match=rf"both pretrained='{path}' and init_cfg="):
        small(pretrained=path, init_cfg={'type': 'Pretrained', 'checkpoint': path})


def test_arguments_are_few_and_those_of_the_network():
    own, network = (
        [p for p in inspect.signature(cls).parameters.values() if p.kind is not p.VAR_KEYWORD]
        for cls in (KAT, models.KAT)
    )
    assert len(own) <= 12
    assert own[: len(network)] == network  # names, order and defaults


@pytest.mark.parametrize('name', MOVED)
def test_an_argument_that_moved_tells_its_new_place(name):
    with pytest.raises(
        ConfigError, match=rf'^KAT: {name}=2 is now (patch|ffn|attention|pyramid|arch)='
    ):
        small(**{name: 2})


def test_an_unknown_argument():
    with pytest.raises(ConfigError, match=re.escape('KAT takes no argument depth')):
        small(depth=3)
