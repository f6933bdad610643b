"""Mistakes in what a config gives the backbone and its parts: each error names them."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kat_mm.attention.softmax import SoftmaxAttention
from kat_mm.errors import ConfigError
from kat_mm.models import GRKAN, KAT, SimplePyramid
from kat_mm.models.block import DropPath
from kat_mm.openmmlab import KATOptimWrapperConstructor, necks
from kat_mm.rational import GroupRational

SMALL = {'embed_dims': 48, 'num_layers': 4, 'num_heads': 3, 'feedforward_channels': 64}


def small(**kwargs):
    return KAT(**{'arch': SMALL, 'img_size': 64, **kwargs})


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'arch': 'huge'}, "unknown arch 'huge'; known: tiny, small, base, or a dict of"),
        ({'arch': None}, 'unknown arch None; known: tiny, small, base'),
        ({'arch': {'embed_dims': 8}}, "missing: ['num_layers', 'num_heads']"),
        ({'arch': {**SMALL, 'depth': 3}}, "unknown: ['depth']"),
        ({'arch': {**SMALL, 'num_heads': 5}}, 'num_heads=5 does not divide embed_dims=48'),
        ({'arch': {**SMALL, 'num_layers': 0}}, 'arch.num_layers=0 must be a whole number from 1'),
        ({'ffn': {'activation': {'num_groups': 7}}}, 'num_groups=7 does not divide embed_dims=48'),
        ({'ffn': 'kan'}, "unknown ffn 'kan'; known: gr_kan, mlp"),
        ({'ffn': ['mlp']}, "ffn=['mlp'] must be a name or a dict with a type; known: gr_kan, mlp"),
        ({'attention': 'linear'}, "unknown attention 'linear'; known: softmax"),
        (
            {'ffn': {'act_init': 'swish'}},
            'act_init must be a pair, what act1 and act2 start as, such as (',
        ),
        (
            {'ffn': {'act_init': ('identity', 'sine')}},
            "unknown rational init 'sine'; known: elu, geglu, gelu",
        ),
        ({'ffn': {'act_init': ('identity', 1.0)}}, 'init=1.0 must be the name of a function or a'),
        ({'ffn': {'act_init': ('identity', (1, 2))}}, 'init=(1, 2) must be the name of a funct'),
        ({'out_indices': (4,)}, 'out_indices=(4,) must be different indices of the 4 blocks: 0 to'),
        ({'out_indices': (-5,)}, 'out_indices=(-5,) must be different indices'),
        ({'out_indices': (1, 1)}, 'out_indices=(1, 1) must be different indices'),
        ({'out_indices': (3, -1)}, 'out_indices=(3, -1) must be different indices'),
        ({'out_indices': ()}, 'out_indices is empty'),
        ({'attention': {'global_blocks': (12,)}}, 'global_blocks=(12,) must be different indices'),
        ({'attention': {'window_size': -1}}, 'window_size=-1 must be a whole number from 0 on'),
        ({'arch': {**SMALL, 'reg_tokens': -1}}, 'arch.reg_tokens=-1 must be a whole number from 0'),
        ({'arch': {**SMALL, 'reg_tokens': 1.5}}, 'arch.reg_tokens=1.5 must be a whole number'),
        ({'arch': {**SMALL, 'cls_token': 'no'}}, "arch.cls_token='no' must be True or False"),
        ({'arch': {'type': 'large'}}, "unknown arch 'large'; known: tiny, small, base"),
        ({'with_cp': 1}, 'with_cp=1 must be True or False'),
        ({'patch': {'sise': 8}}, 'patch has no sise; it has size, in_channels, drop'),
        ({'attention': {'rel_pos': 'h'}}, "rel_pos='h' must be True or False"),
        (
            {'attention': {'rel': True}},
            "attention 'softmax' takes no rel; it takes qkv_bias",
        ),
        (
            {'attention': {'global_attention': 'softmax'}},
            'global_attention needs attention.window_',
        ),
        ({'attention': {'shared': 3}}, 'attention.shared=3 must be True, or the names of parts'),
        ({'attention': {'shared': ['rel_pos_h']}}, "SoftmaxAttention has no part 'rel_pos_h'"),
        ({'attention': 'karat'}, "unknown attention 'karat'; known: softmax, KArAt"),
        ({'attention': {'rank': 12}}, "; type='KArAt' takes it"),
        (
            {'attention': {'type': 'KArAt', 'universal': True}},
            'mimetic, window_size, global_blocks, global_attention, shared',
        ),
        (
            {'attention': {'type': 'KArAt', 'grid': (4, 4)}},
            "'KArAt' takes no grid; it takes basis,",
        ),
        (
            {'attention': {'type': 'KArAt', 'shared': 'gate'}},
            "KArAt has no part 'gate' with parameters; it has qkv, proj, operator",
        ),
        (
            {'attention': {'window_size': 2, 'global_attention': {'window_size': 4}}},
            "'softmax' takes no window_size; it takes qkv_bias, rel_pos, drop, mimetic",
        ),
        ({'frozen_stages': 5}, 'frozen_stages=5 must be a whole number from -1 to 4'),
        ({'patch': {'drop': 1.5}}, 'patch.drop=1.5 must lie in [0, 1]'),
        ({'attention': {'drop': 1.5}}, 'drop=1.5 must lie in [0, 1]'),
        ({'ffn': {'drop': 'much'}}, "drop='much' must be a number"),
        ({'drop_path_rate': -0.1}, 'drop_path_rate=-0.1 must lie in [0, 1]'),
        ({'drop_path_rate': 1.0}, 'drop path probability must lie in [0, 1), got 1.0'),
        ({'img_size': 0}, 'img_size[0]=0 must be a whole number from 1 on'),
        ({'img_size': (64, 64, 3)}, 'img_size=(64, 64, 3) must be one number of pixels or (heig'),
        ({'img_size': (64, 15)}, 'img_size=(64, 15) is smaller than a patch, patch.size=16'),
        ({'pyramid': (8, 8, 8)}, 'pyramid.channels=(8, 8, 8) has 3 levels and pyramid.strides=(4,'),
        ({'pyramid': {'channels': (), 'strides': ()}}, 'pyramid.channels=() has 0 levels'),
        ({'pyramid': {'strides': (8, 16)}}, 'pyramid.channels=() has 0 levels and'),
        ({'pyramid': {'type': 'fpn'}}, "unknown pyramid 'fpn'; known: simple"),
        ({'pyramid': 256}, 'pyramid.channels=256 must be a sequence of whole numbers'),
        ({'pyramid': (8, 8, 0, 8)}, 'pyramid.channels[2]=0 must be a whole number from 1 on'),
        ({'pyramid': (8, 8, 8, 8.5)}, 'pyramid.channels[3]=8.5 must be a whole number from 1 on'),
        (
            {'pyramid': {'channels': (8, 8), 'strides': (8, 12)}},
            'stride 12 from a map of',
        ),
        ({'pyramid': {'channels': (8,), 'strides': (0,)}}, 'pyramid.strides[0]=0 must be a whole'),
        ({'pyramid': (8, 8, 8, 8), 'out_indices': (4,)}, 'indices of the 4 pyramid levels: 0 to 3'),
        ({'pyramid': (8, 8, 8, 8), 'patch': 14}, 'stride 4 from a map of stride 14'),
    ],
)
def test_of_the_backbone(kwargs, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        small(**kwargs)


JUNK = st.one_of(
    st.text(max_size=3),
    st.booleans(),
    st.floats(-10, -0.01) | st.floats(1.01, 1.99),
    st.integers(max_value=-2),
    st.just({}),
    st.just(float('nan')),
)
PLACES = {  # of an argument that is junk: how it is passed
    'img_size': lambda junk: {'img_size': junk},
    'size': lambda junk: {'patch': {'size': junk}},
    'in_channels': lambda junk: {'patch': {'in_channels': junk}},
    'num_groups': lambda junk: {'ffn': {'activation': {'num_groups': junk}}},
    'window_size': lambda junk: {'attention': {'window_size': junk}},
    'frozen_stages': lambda junk: {'frozen_stages': junk},
    'drop': lambda junk: {'attention': {'drop': junk}},
    'drop_path_rate': lambda junk: {'drop_path_rate': junk},
    'channels': lambda junk: {'pyramid': {'channels': (16, junk), 'strides': (16, 16)}},
    'strides': lambda junk: {'pyramid': {'channels': (16, 16), 'strides': (16, junk)}},
    'out_indices': lambda junk: {'out_indices': (0, junk)},
    **{
        name: lambda junk, name=name: {'arch': {**SMALL, name: junk}}
        for name in (*SMALL, 'reg_tokens')
    },
}


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(list(PLACES)), junk=JUNK)
def test_of_any_kind(name, junk):
    """What is no number of the right kind and range is never built with."""
    with pytest.raises(ConfigError, match=name):
        small(**PLACES[name](junk))


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        ((3, 32, 32), 'images must be [B, 3, H, W], got (3, 32, 32)'),
        ((1, 4, 32, 32), 'got (1, 4, 32, 32); patch=dict(in_channels=...) sets the number'),
        ((1, 3, 0, 32), 'images are empty, got (1, 3, 0, 32)'),
        ((1, 3, 3, 32), 'images of 3 x 32 pixels are smaller than a patch, patch.size=16'),
        ((1, 3, 32, 15), 'images of 32 x 15 pixels are smaller than a patch, patch.size=16'),
        (
            (1, 3, 40, 33),
            'window_size=4 is larger than the map of images of 40 x 33 pixels, which has 3 x 3 '
            'patches: choose a smaller window, or 0 for global attention',
        ),
    ],
)
def test_of_images(shape, message):
    model = small(attention={'window_size': 4, 'global_blocks': (3,)})
    with pytest.raises(ValueError, match=re.escape(message)):
        model(torch.zeros(shape))


def test_images_as_small_as_they_may_be():
    model = small(attention={'window_size': 4, 'global_blocks': (3,)}).eval()
    assert model(torch.zeros(1, 3, 16, 49))[0].shape == (1, 48, 1, 4)
    without_windows = small(attention={'window_size': 4, 'global_blocks': (0, 1, 2, 3)}).eval()
    assert without_windows(torch.zeros(1, 3, 16, 16))[0].shape == (1, 48, 1, 1)


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (
            lambda: SoftmaxAttention(16, 3, (2, 2)),
            'num_heads=3 does not divide embed_dims=16',
        ),
        (lambda: SoftmaxAttention(16, 0, (2, 2)), 'num_heads=0 must be a whole number from 1 on'),
        (lambda: DropPath(1.5), 'drop path probability must lie in [0, 1), got 1.5'),
        (lambda: GRKAN('16'), "embed_dims='16' must be a whole number from 1 on"),
        (
            lambda: GRKAN(16, activation={'num_groups': 0}),
            'num_groups=0 must be a whole number from 1 on',
        ),
        (lambda: GRKAN(16, drop='0.1'), "drop='0.1' must be a number"),
        (lambda: GRKAN(16, act_init=3), 'act_init must be a pair'),
        (lambda: GroupRational(8.0), 'num_groups=8.0 must be a whole number from 1 on'),
        (lambda: GroupRational(order=(5, 4, 3)), 'order=(5, 4, 3) must be two degrees (m, n)'),
        (lambda: SimplePyramid(0), 'in_channels=0 must be a whole number from 1 on'),
        (lambda: SimplePyramid(16, '8'), "out_channels='8' must be a sequence of whole numbers"),
        (lambda: SimplePyramid(16, -8), 'out_channels[0]=-8 must be a whole number from 1 on'),
        (lambda: SimplePyramid(16, strides=8), 'strides=8 must be a sequence of whole numbers'),
        (lambda: SimplePyramid(16, strides=(8.0,)), 'strides[0]=8.0 must be a whole number'),
        (lambda: SimplePyramid(16, in_stride=0), 'in_stride=0 must be a whole number from 1 on'),
        (lambda: necks.SimplePyramid(16, norm_cfg='BN'), "norm_cfg='BN' must be a dict with"),
        (lambda: necks.SimplePyramid(16, norm_cfg={}), 'norm_cfg={} must be a dict with a type'),
    ],
)
def test_of_parts(build, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'layer_decay_rate': '0.8'}, "layer_decay_rate='0.8' must be a number"),
        ({'layer_decay_rate': 1.1}, 'layer_decay_rate must lie in (0, 1], got 1.1'),
        ({'bias_lr_mult': None}, 'bias_lr_mult=None must be a number'),
        ({'custom_keys': ['head']}, "custom_keys=['head'] must be a dict of parts of names"),
        ({'custom_keys': {'head': 2.0}}, "custom_keys['head']=2.0 must be a dict, of lr_mult and"),
        (
            {'custom_keys': {'head': {'lr_mult': 'high'}}},
            "custom_keys['head'].lr_mult='high' must be a number",
        ),
    ],
)
def test_of_parameter_groups(options, message):
    optimizer = {'type': 'AdamW', 'lr': 1e-4}
    with pytest.raises(ConfigError, match=re.escape(message)):
        KATOptimWrapperConstructor({'type': 'OptimWrapper', 'optimizer': optimizer}, options)
