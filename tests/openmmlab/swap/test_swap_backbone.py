"""What swap_backbone changes in a config, what it refuses, and what it writes."""

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from kat_mm.models import KAT
from kat_mm.openmmlab.swap import CannotSwap, swap_backbone

ARCH = {'embed_dims': 48, 'num_layers': 4, 'num_heads': 2}


@MODELS.register_module()
class MapsOf(nn.Module):
    """A backbone whose maps are as told; `returns` replaces them by something else."""

    def __init__(self, channels, strides, num_layers=None, out_indices=None, returns=None):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(3, c, stride, stride) for c, stride in zip(channels, strides, strict=True)
        )
        self.returns = returns

    def forward(self, images):
        return self.returns or [conv(images) for conv in self.convs]


@MODELS.register_module()
class Anything(nn.Module):
    """A model with a backbone and a convolution `head`, whatever its config says beside these."""

    def __init__(self, backbone, needs=None, **_):
        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.head = nn.Conv2d(1, 1, 1)
        if needs:
            getattr(self.backbone, needs)


def config_of(channels=(8, 16, 32, 64), strides=(4, 8, 16, 32), model=(), backbone=(), **settings):
    backbone = {'type': 'MapsOf', 'channels': channels, 'strides': strides, **dict(backbone)}
    model = {'type': 'Anything', 'data_preprocessor': {}, 'backbone': backbone, **dict(model)}
    wrapper = {'type': 'OptimWrapper', 'optimizer': {'type': 'SGD', 'lr': 0.01}}
    return Config({'default_scope': 'mmseg', 'model': model, 'optim_wrapper': wrapper, **settings})


def swapped(*args, checkpoint=None, layer_decay=None, **kwargs):
    config = config_of(*args, **kwargs)
    swap_backbone(config, ARCH, checkpoint, layer_decay)
    return config


@pytest.mark.parametrize(
    ('channels', 'strides', 'expected'),
    [
        ((8, 16, 32, 64), (4, 8, 16, 32), {'pyramid': (8, 16, 32, 64)}),
        ((8, 16, 32), (8, 16, 32), {'pyramid': {'channels': (8, 16, 32), 'strides': (8, 16, 32)}}),
        ((64,), (32,), {'pyramid': {'channels': (64,), 'strides': (32,)}}),
        (
            (8, 16, 32, 64),
            (4, 8, 8, 8),
            {'pyramid': {'channels': (8, 16, 32, 64), 'strides': (4, 8, 8, 8)}},
        ),
    ],
)
def test_levels_of_the_pyramid_are_the_old_maps(channels, strides, expected):
    backbone = swapped(channels, strides).model.backbone
    assert backbone == {'type': 'KAT', 'arch': ARCH, 'drop_path_rate': 0.1, **expected}
    model = KAT(**{k: v for k, v in backbone.items() if k != 'type'})
    assert model.out_channels == channels


@pytest.mark.parametrize(
    ('depth', 'indices', 'expected'),
    [
        (12, None, None),
        (12, 11, None),
        (8, (1, 3, 5, 7), (0, 1, 2, 3)),
        (24, (5, -1), (0, 3)),
        (24, (9, 14, 19, 23), (0, 1, 2, 3)),  # scaled, two of them would be the same block
    ],
)
def test_blocks_of_a_plain_transformer_lie_as_deep_as_before(depth, indices, expected):
    count = len(indices) if isinstance(indices, tuple) else 1
    backbone = {'num_layers': depth, **({} if indices is None else {'out_indices': indices})}
    config = swapped((96,) * count, (16,) * count, backbone=backbone)
    assert config.model.backbone.get('out_indices') == expected
    assert 'pyramid' not in config.model.backbone


def plain(**model):
    return swapped((96,) * 2, (16,) * 2, model, {'num_layers': 4, 'out_indices': (1, 3)}).model


def test_what_takes_plain_maps_gets_their_width():
    necks = [{'type': 'MultiLevelNeck', 'in_channels': [96, 96], 'out_channels': 96}]
    model = plain(neck=necks, decode_head={'in_channels': [96, 96], 'channels': 96})
    assert model.neck == [{'type': 'MultiLevelNeck', 'in_channels': [48, 48], 'out_channels': 96}]
    assert model.decode_head == {'in_channels': [96, 96], 'channels': 96}

    model = plain(
        decode_head={'kernel_generate_head': {'in_channels': 96, 'channels': 96, 'num_convs': 1}},
        auxiliary_head=[{'in_channels': 96, 'channels': 96, 'num_convs': 0}, {'in_channels': 8}],
    )
    inner = model.decode_head.kernel_generate_head
    assert (inner.in_channels, inner.channels) == (48, 96)
    assert model.auxiliary_head[0] == {'in_channels': 48, 'channels': 48, 'num_convs': 0}
    assert model.auxiliary_head[1].in_channels == 8

    model = plain(
        neck={'type': 'Feature2Pyramid', 'embed_dim': 96}, decode_head={'in_channels': 96}
    )
    assert (model.neck.embed_dim, model.decode_head.in_channels) == (48, 48)


def test_levels_that_an_fpn_leaves_out_are_not_computed():
    neck = {'type': 'FPN', 'in_channels': [8, 16, 32, 64], 'start_level': 1, 'num_outs': 5}
    model = swapped(model={'neck': neck}).model
    assert model.backbone.pyramid == {'channels': (16, 32, 64), 'strides': (8, 16, 32)}
    assert model.neck == {**neck, 'in_channels': [16, 32, 64], 'start_level': 0}
    model = swapped(model={'neck': {**neck, 'end_level': 2}}).model
    assert model.backbone.pyramid == (8, 16, 32, 64)


@pytest.mark.parametrize(
    'old',
    [
        {'mean': [103.53, 116.28, 123.675], 'std': [1.0] * 3, 'bgr_to_rgb': False, 'pad_value': 0},
        {'pad_value': 114.0},  # of images that were not normalised
    ],
)
def test_images_are_normalised_for_kat(old):
    expected = {
        'mean': [123.675, 116.28, 103.53],
        'std': [58.395, 57.12, 57.375],
        'bgr_to_rgb': True,
        'pad_value': 0,
        'size': 8,
    }
    model = swapped(model={'data_preprocessor': {**old, 'size': 8}}).model
    assert model.data_preprocessor == expected
    branches = {'type': 'MultiBranchDataPreprocessor', 'data_preprocessor': {**old, 'size': 8}}
    model = swapped(model={'data_preprocessor': branches}).model
    assert model.data_preprocessor == {**branches, 'data_preprocessor': expected}


def test_weights_of_the_old_backbone_are_dropped():
    weights = {'type': 'Pretrained', 'checkpoint': 'detector.pth'}
    config = swapped(
        model={'pretrained': 'open-mmlab://resnet50_v1c', 'init_cfg': weights},
        backbone={'init_cfg': {'type': 'Pretrained', 'checkpoint': 'torchvision://resnet50'}},
        load_from='detector.pth',
        checkpoint='kat.pth',
    )
    assert config.load_from is None
    assert config.model.pretrained is None
    assert config.model.init_cfg is None
    assert config.model.backbone.init_cfg == {'type': 'Pretrained', 'checkpoint': 'kat.pth'}
    assert 'init_cfg' not in swapped().model.backbone


def test_sgd_and_its_schedule_give_way():
    schedule = {'type': 'PolyLR', 'eta_min': 1e-3, 'power': 0.9, 'by_epoch': False}
    config = swapped(param_scheduler=[schedule], auto_scale_lr={'base_batch_size': 64})
    optimizer = config.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-4, 0.05)
    assert optimizer.fused
    warm_up, poly = config.param_scheduler
    assert warm_up.type == 'LinearLR'
    assert poly == {**schedule, 'eta_min': 1e-5}
    assert config.auto_scale_lr.base_batch_size == 16

    warm = [{'type': 'LinearLR', 'start_factor': 0.1}, {'type': 'MultiStepLR'}]
    assert swapped(param_scheduler=warm).param_scheduler == warm


def wrapped(layer_decay=None, **wrapper):
    adam = {'type': 'AdamW', 'lr': 6e-5, 'weight_decay': 0.01}
    wrapper = {'type': 'OptimWrapper', 'optimizer': adam, **wrapper}
    schedule = [{'type': 'PolyLR', 'eta_min': 1e-3}]
    config = swapped(optim_wrapper=wrapper, param_scheduler=schedule, layer_decay=layer_decay)
    assert config.param_scheduler == schedule
    assert config.optim_wrapper.optimizer == {**adam, 'fused': True}
    assert config.default_hooks.runtime_info == {'type': 'DeferredRuntimeInfoHook'}
    return config.optim_wrapper


def test_an_optimizer_for_transformers_stays_and_trains_kat_by_layer():
    wrapper = wrapped(clip_grad={'max_norm': 1})
    assert wrapper.constructor == 'KATOptimWrapperConstructor'
    assert wrapper.clip_grad == {'max_norm': 1}
    assert 'paramwise_cfg' not in wrapper
    assert wrapped(0.8).paramwise_cfg == {'layer_decay_rate': 0.8}

    keys = {
        'backbone': {'lr_mult': 0.1},
        'head': {'lr_mult': 10.0},
        'backbone.stages.0.norm': {'decay_mult': 0.0},
        'pos_block': {'decay_mult': 0.0},
    }
    old = {'num_layers': 12, 'decay_rate': 0.65, 'norm_decay_mult': 0.0, 'custom_keys': keys}
    new = wrapped(paramwise_cfg=old | {'decay_type': 'layer_wise'}).paramwise_cfg
    kept = {'backbone': {'lr_mult': 0.1}, 'head': {'lr_mult': 10.0}}
    assert new == {'layer_decay_rate': 0.65, 'norm_decay_mult': 0.0, 'custom_keys': kept}
    new = wrapped(paramwise_cfg=old | {'decay_type': 'stage_wise'}).paramwise_cfg
    assert new == {'norm_decay_mult': 0.0, 'custom_keys': kept}


def test_mixed_precision_is_bf16():
    for old in ({}, {'type': 'AmpOptimWrapper', 'loss_scale': 'dynamic'}):
        wrapper = wrapped(**old)
        assert (wrapper.type, wrapper.dtype) == ('AmpOptimWrapper', 'bfloat16')
        assert wrapper.loss_scale == {'enabled': False}
    MODELS.register_module('VFNet', force=True, module=Anything)
    assert swapped(model={'type': 'VFNet'}).optim_wrapper.type == 'OptimWrapper'
    config = swapped(model={'neck': [{'norm_cfg': {'type': 'MMSyncBN'}}]})  # which takes no bf16
    assert config.optim_wrapper.type == 'OptimWrapper'
    extractor = {'type': 'SingleRoIExtractor', 'out_channels': 8}
    config = swapped(model={'roi_head': [{'bbox_roi_extractor': extractor}]})
    assert config.model.roi_head[0].bbox_roi_extractor.type == 'FullPrecisionRoIExtractor'
    assert config.custom_imports.imports == ['kat_mm.openmmlab']


@pytest.mark.parametrize(
    ('old', 'head', 'expected'),
    [
        (None, 'FCNHead', ['kat_mm.openmmlab']),
        ('math', 'FCNHead', ['math', 'kat_mm.openmmlab']),
        (['mmpretrain.models', 'math'], 'FCNHead', ['math', 'kat_mm.openmmlab']),
        (['mmpretrain.models'], 'mmpretrain.Head', ['mmpretrain.models', 'kat_mm.openmmlab']),
    ],
)
def test_imports(old, head, expected):
    settings = {'custom_imports': {'imports': old}} if old else {}
    config = swapped(model={'decode_head': {'type': head}}, **settings)
    assert config.custom_imports.imports == expected


def test_a_detector_inside_another_model():
    inner = config_of().model
    model = {'type': 'Wrapper', 'detector': inner, 'data_preprocessor': {}}
    MODELS.register_module(
        'Wrapper', force=True, module=lambda detector, **_: MODELS.build(detector)
    )
    config = config_of()
    config.model = model
    swap_backbone(config, ARCH)
    assert config.model.detector.backbone.type == 'KAT'


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (config_of(backbone={'type': 'KAT'}), 'model.backbone is KAT already'),
        (Config({'a': 1}), 'no model'),
        (Config({'model': {'type': 'Fancy', 'vision': {}}}), 'no model.backbone: Fancy holds it'),
        (config_of(model={'teacher_ckpt': 'teacher.pth'}), 'learns from a trained teacher'),
        (config_of(backbone={'type': 'Unknown'}), 'Unknown does not run here.*not in the'),
        (config_of(backbone={'returns': [[1]]}), 'MapsOf returns more than maps.*a list'),
        (config_of((8, 16), (2, 4)), r'at strides \(2, 4\); KAT gives \(4, 8, 16, 32\)'),
        (
            config_of((8, 16), (8, 4)),
            r'branches of its own.*\(8, 16\) channels at strides \(8, 4\)',
        ),
        (config_of((32, 16, 16), (8, 8, 16)), 'branches of its own'),
        (config_of((16, 16), (16, 16)), 'branches of its own'),
        (config_of(model={'needs': 'num_branch'}), "cannot be built with the new.*'num_branch'"),
        (config_of(model={'data_preprocessor': None}), 'no model.data_preprocessor'),
        (config_of(optim_wrapper={'type': 'OptimWrapperDict'}), 'no optim_wrapper.optimizer'),
    ],
)
def test_refusals(config, message):
    with pytest.raises(CannotSwap, match=message):
        swap_backbone(config, ARCH)


def test_every_change_is_reported_with_its_reason():
    config = config_of()
    before = config.to_dict()
    changes = swap_backbone(config, ARCH)
    assert all(change.reason for change in changes)
    assert {change.key.partition('.')[0] for change in changes} == {
        key for key, value in config.to_dict().items() if value != before.get(key)
    }
    optimizer = next(change for change in changes if change.key == 'optim_wrapper.optimizer')
    assert optimizer.old == {'type': 'SGD', 'lr': 0.01}
