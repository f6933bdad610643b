import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import kat_mm.openmmlab  # noqa: F401
from kat_mm.errors import ConfigError
from kat_mm.openmmlab import model_checks
from kat_mm.openmmlab.model_checks import check_classes, check_model

ARCH = {'embed_dims': 32, 'num_layers': 4, 'num_heads': 2}
PYRAMID = (8, 16, 24, 32)
PLAIN = {'pyramid': None, 'out_indices': (0, 1, 2, 3)}
FPN = {'type': 'FPN', 'in_channels': list(PYRAMID), 'out_channels': 8, 'num_outs': 5}
TO_PYRAMID = {'type': 'Feature2Pyramid', 'embed_dim': 32, 'norm_cfg': {'type': 'BN'}}
HEAD = {'type': 'FCNHead', 'channels': 8, 'num_convs': 1, 'num_classes': 2}


def segmentor(head, neck=None, **backbone):
    import mmseg.models  # noqa: F401

    config = {
        'type': 'mmseg.EncoderDecoder',
        'data_preprocessor': {'type': 'SegDataPreProcessor'},
        'backbone': {'type': 'KAT', 'arch': ARCH, 'pyramid': PYRAMID, **backbone},
        'neck': neck,
        'decode_head': {**HEAD, 'in_channels': 32, 'in_index': 3, **head},
    }
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(ConfigDict(config))


FITTING = {
    'fpn': dict(head={'in_channels': 8}, neck=FPN),
    'unused level': dict(
        head={'in_channels': 8},
        neck={**FPN, 'in_channels': [99, 16, 24, 32], 'start_level': 1, 'num_outs': 4},
    ),
    'plain': dict(head={'in_channels': 32}, neck=TO_PYRAMID, **PLAIN),
    'one map': dict(head={}),
    'concatenated': dict(
        head={
            **{'in_index': [0, 2], 'in_channels': [8, 24]},
            'input_transform': 'resize_concat',
        }
    ),
}


@pytest.mark.parametrize('case', FITTING)
def test_what_fits_passes_and_is_left_as_it_was(case):
    model = segmentor(**FITTING[case]).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_model(model)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ('settings', 'part'),
    [
        (
            dict(neck=FPN, pyramid=(8, 16, 24, 40)),
            r'the neck FPN with \[8, 16, 24, 32\] in_channels cannot .* 24, 40\)',
        ),
        (dict(neck=FPN, out_indices=(1, 2, 3)), r'of \(16, 24, 32\) channels at strides \(8, 16,'),
        (
            dict(neck=[{**TO_PYRAMID, 'embed_dim': 48}, FPN], **PLAIN),
            'the neck Feature2Pyramid cannot take the maps .* 32, 32, 32. channels at strides .16,',
        ),
        (dict(head={'in_channels': 24}), 'decode_head: in_index=3 with 24 in_channels does not'),
        (dict(head={'in_index': 4}), r'in_index=4 .* of \(8, 16, 24, 32\) channels: correct'),
        (
            dict(
                head={
                    **{'in_index': [0, 2], 'in_channels': [8, 16]},
                    'input_transform': 'resize_concat',
                }
            ),
            r'in_index=\[0, 2\] with 24 in_channels',
        ),
    ],
)
def test_maps_that_do_not_fit(settings, part):
    with pytest.raises(ConfigError, match=part):
        check_model(segmentor(**{'head': {}, **settings}))


def test_a_neck_that_takes_more_than_maps_is_left_alone():
    class TextNeck(nn.Module):
        def forward(self, maps, text):
            raise NotImplementedError

    model = segmentor({}, FPN)
    model.neck = TextNeck()
    check_model(model)


class TestClasses:
    @pytest.fixture
    def model(self):
        model = segmentor({})
        model.auxiliary_head = nn.ModuleList([segmentor({'num_classes': 3}).decode_head])
        return model

    @pytest.fixture
    def told(self, monkeypatch):
        told = []
        monkeypatch.setattr(model_checks, 'print_log', lambda text, *_: told.append(text))
        return told

    @pytest.mark.parametrize(
        ('classes', 'name', 'known'), [('abc', 'decode_head', 2), ('abcd', 'decode_head', 2)]
    )
    def test_too_few_outputs(self, model, classes, name, known):
        with pytest.raises(ConfigError, match=rf'model\.{name}: FCNHead has num_classes={known}'):
            check_classes(model, classes)

    def test_too_many_outputs(self, model, told):
        check_classes(model, 'ab')
        [text] = told
        assert text.startswith('model.auxiliary_head.0: FCNHead has num_classes=3, the data set 2 ')

    def test_what_tells_no_classes(self, model, told):
        check_classes(model, None)
        network = nn.ModuleDict({'rpn_head': model.decode_head})
        check_classes(network, 'abc')
        model.decode_head.class_agnostic = True
        check_classes(model, 'abc')
        assert not told
