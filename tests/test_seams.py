"""New parts from outside the package: a basis, an attention, a backbone, a few lines each."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from torch import nn

from kat_mm.attention import Attention
from kat_mm.errors import ConfigError, DataError
from kat_mm.models import KAT
from kat_mm.openmmlab.model_checks import check_model
from kat_mm.openmmlab.swap import read_config, swap_backbone
from kat_mm.registry import ACTIVATIONS, ATTENTIONS
from kat_mm.weights.layout import weights_of

ARCH = {'embed_dims': 16, 'num_layers': 4, 'num_heads': 2}
IMAGES = torch.randn(2, 3, 80, 64)


@ACTIVATIONS.register('sines')
class Sines(nn.Module):
    """x, or swish(x), plus learned sines of each group."""

    def __init__(self, num_groups=8, init='swish', channel_dim=-1, terms=3):
        super().__init__()
        self.num_groups, self.terms = num_groups, terms
        self.start = {'identity': nn.Identity(), 'swish': nn.SiLU()}[init]
        self.weight = nn.Parameter(torch.empty(num_groups * terms))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.zeros_(self.weight)

    def forward(self, x):
        z = x.unflatten(-1, (self.num_groups, -1))
        weights = self.weight.view(self.num_groups, 1, self.terms)
        sines = sum(weights[..., i] * ((i + 1) * z).sin() for i in range(self.terms))
        return (self.start(z) + sines).flatten(-2)


def test_a_basis():
    model = KAT(ARCH, 64, ffn=dict(activation=dict(type='sines', num_groups=4, terms=2)))
    act, fc = model.blocks[0].mlp.act2, model.blocks[0].mlp.fc2
    assert act.weight.shape == (8,)
    assert fc.weight.var().item() == pytest.approx(2.8 / 64, rel=0.15)  # swish's gain / fan_in
    model(IMAGES)[0].square().sum().backward()
    assert act.weight.grad.abs().min() > 0


@ATTENTIONS.register('tempered')
class Tempered(Attention):
    """Softmax attention of one head without projections, at a temperature."""

    def __init__(self, *owner, temperature=1.0):
        super().__init__(*owner)
        self.scale = nn.Parameter(torch.full((1,), 1 / temperature))

    def attend(self, x, grid, mask=None):
        scores = self.scale * x @ x.mT
        return (scores if mask is None else scores + mask[:, 0]).softmax(-1) @ x


def test_an_attention_in_windows_and_shared():
    model = KAT(
        ARCH,
        64,
        attention=dict(
            **dict(type='tempered', temperature=2.0, window_size=2, shared=True),
            **dict(global_blocks=(1,), global_attention=dict(type='softmax', rel_pos=True)),
        ),
    )
    kinds = [type(block.attn).__name__ for block in model.blocks]
    assert kinds == ['Tempered', 'SoftmaxAttention', 'Tempered', 'Tempered']
    assert model.blocks[0].attn is model.blocks[3].attn
    attn, x = model.blocks[0].attn, torch.randn(1, 4 * 5, 16)
    y, corner = attn(x, (4, 5)).view(4, 5, 16), x.view(4, 5, 16)[2:, 4:].reshape(1, 2, 16)
    assert torch.allclose(y[2:, 4:].reshape(1, 2, 16), attn.attend(corner, (2, 1)))
    model(IMAGES)[0].square().sum().backward()
    assert attn.scale.grad is not None
    assert model.get_layer_depth('blocks.3.attn.scale') == (4, 6)


@MODELS.register_module()
class FourStages(nn.Module):
    """A small hierarchical backbone, which has the members of the protocol and nothing else."""

    out_channels, out_strides = (8, 16, 24, 32), (4, 8, 16, 32)

    def __init__(self):
        super().__init__()
        sizes = zip((3, 8, 16, 24), self.out_channels, (4, 2, 2, 2), strict=True)
        self.stages = nn.ModuleList(nn.Conv2d(*size, size[2]) for size in sizes)

    def forward(self, x):
        return tuple(x := stage(x) for stage in self.stages)

    def get_layer_depth(self, param_name, prefix=''):
        return int(param_name.removeprefix(prefix).split('.')[1]), 4

    def adapt_checkpoint(self, content, source):
        weights = weights_of(content, source)
        if missing := [key for key in self.state_dict() if key not in weights]:
            raise DataError(f'{source} has no {missing[0]}')
        return weights

    def check_image_size(self, height, width):
        if min(height, width) < 32:
            raise ConfigError(f'images of {height} x {width} pixels are too small')


def test_a_hierarchical_backbone(tmp_path):
    config, _ = read_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco')
    swap_backbone(config, backbone=dict(type='FourStages'), layer_decay=0.5)
    assert config.model.neck.in_channels == [8, 16, 24, 32]
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config.model)
        wrapper = dict(config.optim_wrapper, type='OptimWrapper')
        wrapper['optimizer'] = dict(type='AdamW', lr=1.0)
        del wrapper['dtype'], wrapper['loss_scale']
        groups = build_optim_wrapper(model, wrapper).optimizer.param_groups
    assert {group['lr'] for group in groups} == {0.125, 0.25, 0.5, 1.0}
    check_model(model)
    model.neck = MODELS.build({**config.model.neck, 'type': 'mmdet.FPN', 'in_channels': [8] * 4})
    with pytest.raises(ConfigError, match=r'the maps of the backbone, of \(8, 16, 24, 32\)'):
        check_model(model)
    bare = FourStages()
    torch.save({'state_dict': bare.state_dict()}, tmp_path / 'bare.pth')
    load_checkpoint(model, str(tmp_path / 'bare.pth'))
    assert torch.equal(model.backbone.stages[3].weight, bare.stages[3].weight)
    torch.save({'state_dict': {'stages.0.bias': torch.zeros(8)}}, tmp_path / 'other.pth')
    with pytest.raises(DataError, match=r'has no stages\.0\.weight'):
        load_checkpoint(model, str(tmp_path / 'other.pth'))
