"""Parameter groups: each parameter once, with the right rate and weight decay."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

import kat_mm.openmmlab.optimizer  # noqa: F401, registers the constructor
from kat_mm.openmmlab import KAT

ARCH = {'embed_dims': 16, 'num_layers': 4, 'num_heads': 2}
EVERYTHING = {
    'arch': {**ARCH, 'layer_scale': 1.0},
    'attention': {'window_size': 2, 'global_blocks': (3,), 'rel_pos': True},
    'pyramid': (8, 8, 8, 8),
}


class Detector(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.backbone = KAT(**{'arch': ARCH, 'img_size': 32, **kwargs})
        self.neck = nn.Sequential(nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8), nn.GroupNorm(2, 8))
        self.head = nn.Linear(8, 2)


def build(model, **paramwise_cfg):
    wrapper = build_optim_wrapper(
        model,
        {
            'type': 'OptimWrapper',
            'constructor': 'KATOptimWrapperConstructor',
            'optimizer': {'type': 'AdamW', 'lr': 1.0, 'weight_decay': 0.5},
            'paramwise_cfg': paramwise_cfg or None,
        },
    )
    names = {id(p): name for name, p in model.named_parameters()}
    settings = {}
    for group in wrapper.optimizer.param_groups:
        for parameter in group['params']:
            name = names[id(parameter)]
            assert name not in settings, f'{name} is in two groups'
            settings[name] = (group['lr'], group['weight_decay'])
    return wrapper.optimizer.param_groups, settings


def test_every_parameter_is_in_one_group_and_groups_are_few():
    model = Detector(**EVERYTHING)
    groups, settings = build(model, layer_decay_rate=0.5)
    assert settings.keys() == dict(model.named_parameters()).keys()
    assert len(groups) == 2 * (ARCH['num_layers'] + 2)
    assert len(build(model)[0]) == 2
    assert len({group['group_name'] for group in groups}) == len(groups)


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_learning_rates(prefix):
    model = Detector(pyramid=(8, 8, 8, 8))
    outer = nn.ModuleDict({'module': model}) if prefix else model
    _, settings = build(outer, layer_decay_rate=0.5)
    rates = {name.removeprefix(prefix): lr for name, (lr, _) in settings.items()}
    assert rates['backbone.patch_embed.proj.weight'] == 0.5**5
    assert rates['backbone.pos_embed'] == rates['backbone.cls_token'] == 0.5**5
    for i in range(4):
        block = {lr for name, lr in rates.items() if name.startswith(f'backbone.blocks.{i}.')}
        assert block == {0.5 ** (4 - i)}
    rest = ('backbone.norm', 'backbone.pyramid', 'neck', 'head')
    assert {lr for name, lr in rates.items() if name.startswith(rest)} == {1.0}


def test_no_weight_decay_on_coefficients_norms_biases_and_positions():
    model = Detector(**EVERYTHING)
    _, settings = build(model)
    decayed = {name for name, (_, decay) in settings.items() if decay}
    assert {settings[name][1] for name in decayed} == {0.5}
    kinds = {name.split('.', 3)[-1] for name in decayed if '.blocks.' in name}
    assert kinds == {'attn.qkv.weight', 'attn.proj.weight', 'mlp.fc1.weight', 'mlp.fc2.weight'}
    others = {name for name in decayed if '.blocks.' not in name}
    assert {'backbone.patch_embed.proj.weight', 'neck.0.weight', 'head.weight'} < others
    convolutions = {
        f'backbone.pyramid.{name}.weight'
        for name, module in model.backbone.pyramid.named_modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    }
    assert others == convolutions | {
        'backbone.patch_embed.proj.weight',
        'neck.0.weight',
        'head.weight',
    }
    assert 'backbone.cls_token' not in settings
    assert build(Detector())[1]['backbone.cls_token'] == (1.0, 0.0)


def test_no_weight_decay_on_learnable_functions_of_attention():
    model = Detector(attention=dict(type='KArAt', published_scales=True), frozen_stages=0)
    _, settings = build(model)
    decay = {name: settings[name][1] for name in settings if '.operator.' in name}
    assert {name.rpartition('.')[2] for name, value in decay.items() if not value} == {
        *('coefficients', 'base_scale', 'basis_scale')
    }
    assert decay['backbone.blocks.3.attn.operator.weight'] == 0.5


KARAT = dict(type='KArAt', base='softmax', published_scales=True)


def test_functions_learn_at_the_rate_of_their_block():
    _, settings = build(Detector(attention=KARAT), layer_decay_rate=0.5)
    for i in range(4):
        start = f'backbone.blocks.{i}.attn.'
        rates = {lr for name, (lr, _) in settings.items() if name.startswith(start)}
        assert rates == {0.5 ** (4 - i)}
        assert settings[start + 'gate'][1] == 0
        assert settings[start + 'operator.weight'][1] == 0.5


def test_functions_that_blocks_share_learn_at_the_rate_of_the_last():
    config = dict(KARAT, shared='operator', window_size=2, global_blocks=(1,))
    _, settings = build(Detector(attention=config), layer_decay_rate=0.5)
    shared = {name: lr for name, (lr, _) in settings.items() if '.operator.' in name}
    own, window = (f'backbone.blocks.{i}.attn.operator.' for i in (1, 0))
    assert {lr for name, lr in shared.items() if name.startswith(own)} == {0.5**3}
    assert {lr for name, lr in shared.items() if name.startswith(window)} == {0.5}  # block 3's
    assert all(name.startswith((own, window)) for name in shared)
    assert settings['backbone.blocks.0.attn.gate'][0] == 0.5**4  # gates are not shared


def test_clipping_takes_functions_and_gates_too():
    torch.manual_seed(0)
    model = Detector(attention=KARAT)
    wrapper = build_optim_wrapper(
        model,
        {
            'constructor': 'KATOptimWrapperConstructor',
            'optimizer': {'type': 'SGD', 'lr': 1.0},
            'clip_grad': {'max_norm': 0.1},
        },
    )
    nn.init.ones_(model.backbone.blocks[0].attn.gate)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss = model.head(model.neck(model.backbone(torch.randn(2, 3, 32, 32))[0]).mean((2, 3)))
    wrapper.update_params(1e3 * loss.sum())
    moved = {name: (p - before[name]).norm() for name, p in model.named_parameters()}
    assert torch.stack([*moved.values()]).norm().item() == pytest.approx(0.1, rel=1e-3)
    assert all(moved[f'backbone.blocks.0.attn.{name}'] for name in ('gate', 'operator.weight'))


def test_frozen_parameters_are_left_out():
    model = Detector(frozen_stages=2)
    _, settings = build(model, layer_decay_rate=0.5)
    expected = {name for name, p in model.named_parameters() if p.requires_grad}
    assert settings.keys() == expected
    assert not any('blocks.1.' in name for name in settings)


def test_shared_parameters_are_taken_once():
    model = Detector()
    model.other_head = model.head
    model.tied = nn.Linear(8, 2)
    model.tied.weight = model.head.weight
    _, settings = build(model, bypass_duplicate=True)
    assert settings.keys() == dict(model.named_parameters()).keys()


def test_without_kat_all_rates_are_the_base_rate():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    _, settings = build(model, layer_decay_rate=0.5)
    assert settings == {
        '0.weight': (1.0, 0.5),
        '0.bias': (1.0, 0.0),
        '1.weight': (1.0, 0.0),
        '1.bias': (1.0, 0.0),
    }


def test_options():
    _, settings = build(
        Detector(),
        layer_decay_rate=0.5,
        custom_keys={
            'backbone': {'lr_mult': 0.1, 'decay_mult': 1.0},
            'backbone.blocks.3': {'decay_mult': 0.5},
        },
        norm_decay_mult=1.0,
        bias_decay_mult=1.0,
        bias_lr_mult=2.0,
    )
    assert settings['backbone.blocks.2.attn.qkv.weight'] == pytest.approx((0.1 * 0.5**2, 0.5))
    assert settings['backbone.blocks.3.attn.qkv.weight'] == pytest.approx((0.5, 0.25))
    assert settings['backbone.blocks.2.mlp.act1.weight_numerator'][1] == 0
    assert settings['backbone.blocks.2.norm1.weight'] == pytest.approx((0.1 * 0.5**2, 0.5))
    assert settings['head.weight'] == (1.0, 0.5)
    assert settings['head.bias'] == (2.0, 0.5)


def test_keys_of_the_backbone_leave_the_pyramid_alone():
    model = Detector(pyramid=(8, 8, 8, 8))
    level = 'backbone.pyramid.levels.stride8.0.weight'

    def rates(**custom_keys):
        return build(model, custom_keys={k: {'lr_mult': v} for k, v in custom_keys.items()})[1]

    settings = rates(backbone=0.1)
    assert settings['backbone.norm.weight'][0] == pytest.approx(0.1)
    assert settings[level] == (1.0, 0.5)
    assert rates(**{'backbone': 0.1, 'backbone.pyramid': 0.2})[level][0] == 0.2
    assert rates(backbone=0.1, stride8=0.2)[level][0] == 0.2
    outer = nn.ModuleDict({'detector': model})
    settings = build(outer, custom_keys={'detector.backbone': {'lr_mult': 0.1}})[1]
    assert settings['detector.' + level][0] == 1.0
    assert settings['detector.backbone.pos_embed'][0] == 0.1


def test_groups_say_what_they_are():
    groups, _ = build(Detector(), layer_decay_rate=0.5)
    assert groups[0]['group_name'] == 'lr 0.0312 (x 0.0312), weight decay 0'


def test_torch_compiles_a_step():
    """As mmengine's `compile=True` does, with that of the optimizer in it."""
    model = Detector()
    groups, _ = build(model, layer_decay_rate=0.5)
    assert {type(group) for group in groups} == {dict}


def test_a_step_moves_deep_blocks_less():
    torch.manual_seed(0)
    model = Detector()
    wrapper = build_optim_wrapper(
        model,
        {
            'constructor': 'KATOptimWrapperConstructor',
            'optimizer': {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.0},
            'paramwise_cfg': {'layer_decay_rate': 0.1},
        },
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss = model.head(model.neck(model.backbone(torch.randn(2, 3, 32, 32))[0]).mean((2, 3))).sum()
    wrapper.update_params(loss)
    moved = {name: (p - before[name]).abs().max().item() for name, p in model.named_parameters()}
    # Adam's first step has the size of the learning rate.
    assert moved['backbone.blocks.0.mlp.fc1.weight'] == pytest.approx(1e-7, rel=0.3)
    assert moved['backbone.blocks.3.mlp.fc1.weight'] == pytest.approx(1e-4, rel=0.1)


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        ({'layer_decay': 0.5}, 'unknown paramwise_cfg option layer_decay; known: layer_decay_rate'),
        (
            {'num_layers': 12, 'decay_rate': 0.9, 'decay_type': 'stage_wise'},
            'write layer_decay_rate instead of decay_rate; remove decay_type.*; remove num_layers',
        ),
        ({'layer_decay_rate': 0}, r'layer_decay_rate must lie in \(0, 1\], got 0'),
        ({'custom_keys': {'head': {'lr': 1}}}, r"custom_keys\['head'\]"),
    ],
)
def test_errors(cfg, message):
    with pytest.raises(ValueError, match=message):
        build(Detector(), **cfg)
