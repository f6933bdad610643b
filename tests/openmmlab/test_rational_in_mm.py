"""Rational activations and layers in mm's own modules, by act_cfg and ffn_cfg alone."""

import copy
from functools import partial

import pytest
import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.transformer import FFN
from mmdet.models.backbones import SwinTransformer
from mmdet.models.dense_heads.yolox_head import YOLOXHead
from mmdet.models.layers import transformer
from mmdet.models.layers.transformer import DetrTransformerEncoder
from mmdet.models.necks import FPN, YOLOXPAFPN
from mmdet.models.necks.cspnext_pafpn import CSPNeXtPAFPN
from mmengine.registry import DefaultScope
from mmseg.models.backbones.mit import MixVisionTransformer
from mmseg.models.backbones.vit import TransformerEncoderLayer

from kat_mm.openmmlab import GRKAN
from kat_mm.rational import GroupRational

ACT = dict(type='GroupRational', num_groups=4)
CONV = dict(type='Conv1d')
TOKEN_ACT = ACT | dict(channel_dim=-1)
ATTENTION = dict(embed_dims=16, num_heads=2)


def floats(value):
    return [value] if isinstance(value, torch.Tensor) else [t for v in value for t in floats(v)]


def train_a_step(model, *inputs):
    """Asserts that one step changes the coefficients of all rational activations; returns these."""
    activations = [module for module in model.modules() if isinstance(module, GroupRational)]
    before = [[p.clone() for p in act.parameters()] for act in activations]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loss = sum(output.square().mean() for output in floats(model(*inputs)))
    assert loss.isfinite()
    loss.backward()
    optimizer.step()
    for old, act in zip(before, activations, strict=True):
        assert all(not torch.equal(a, b) for a, b in zip(old, act.parameters(), strict=True))
    return activations


def test_in_a_conv_module():
    module = ConvModule(3, 16, 3, act_cfg=dict(type='GroupRational'))
    torch.nn.init.normal_(module.activate.weight_denominator)  # groups that differ
    x = torch.randn(2, 3, 18, 18)
    on_channels = GroupRational(channel_dim=1)
    on_channels.load_state_dict(module.activate.state_dict())
    assert torch.equal(module(x), on_channels(module.conv(x)))


def test_tokens_and_points_are_told_apart():
    """mmdet's and mmseg's PointRend has maps [B, C, points], transformers have tokens [B, N, C]."""
    ffn, points = FFN(16, 32, act_cfg=ACT), ConvModule(3, 16, 1, conv_cfg=CONV, act_cfg=ACT)
    for module, x in ((ffn, torch.zeros(2, 5, 16)), (points, torch.zeros(2, 3, 5))):
        with pytest.raises(
            ValueError, match=r'channel_dim=-1 for tokens .*channel_dim=1 for \[B, C'
        ):
            module(x)
    FFN(16, 32, act_cfg=TOKEN_ACT)(torch.zeros(2, 5, 16))
    act_cfg = ACT | dict(channel_dim=1)
    ConvModule(3, 16, 1, conv_cfg=CONV, act_cfg=act_cfg)(torch.zeros(2, 3, 5))


def test_a_conv_module_whose_channels_the_groups_do_not_divide():
    module = ConvModule(3, 18, 1, act_cfg=dict(type='GroupRational'))
    with pytest.raises(ValueError, match=r'18 channels .* 8 groups .*num_groups=6'):
        module(torch.zeros(1, 3, 2, 2))


NECK = dict(in_channels=[8, 16, 32], out_channels=16, act_cfg=ACT)
NECKS_AND_HEADS = [
    (partial(FPN, num_outs=4, **NECK), (8, 16, 32)),
    (partial(YOLOXPAFPN, num_csp_blocks=1, **NECK), (8, 16, 32)),
    (partial(CSPNeXtPAFPN, num_csp_blocks=1, **NECK), (8, 16, 32)),
    (partial(YOLOXHead, 4, 16, feat_channels=16, stacked_convs=1, act_cfg=ACT), (16, 16, 16)),
]


@pytest.mark.parametrize(('build', 'channels'), NECKS_AND_HEADS)
def test_necks_and_heads(build, channels):
    with DefaultScope.overwrite_default_scope('mmdet'):  # where the head's losses are
        model = build()
    maps = [torch.randn(2, c, 8 >> level, 8 >> level) for level, c in enumerate(channels)]
    convs = [module for module in model.modules() if isinstance(module, ConvModule)]
    assert train_a_step(model, maps) == [conv.activate for conv in convs]


def test_swin():
    model = SwinTransformer(
        embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=2, act_cfg=TOKEN_ACT
    )
    assert len(train_a_step(model, torch.randn(1, 3, 64, 64))) == 4


def test_mit():
    model = MixVisionTransformer(
        embed_dims=8, num_layers=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), act_cfg=ACT
    )
    assert len(train_a_step(model, torch.randn(1, 3, 64, 64))) == 4


@pytest.mark.parametrize(
    'ffn', [dict(act_cfg=TOKEN_ACT), dict(type='GRKAN', activation=dict(num_groups=4))]
)
def test_a_detr_encoder(ffn):
    ffn_cfg = dict(embed_dims=16, feedforward_channels=32, num_fcs=2, ffn_drop=0.0, **ffn)
    model = DetrTransformerEncoder(
        num_layers=2, layer_cfg=dict(self_attn_cfg=ATTENTION, ffn_cfg=ffn_cfg)
    )
    kind = GRKAN if 'type' in ffn else FFN
    assert all(type(layer.ffn) is kind for layer in model.layers)
    tokens = torch.randn(2, 7, 16)
    activations = train_a_step(model, tokens, torch.randn(2, 7, 16), torch.zeros(2, 7).bool())
    assert len(activations) == (4 if kind is GRKAN else 2)


CROSS = dict(self_attn_cfg=ATTENTION, cross_attn_cfg=ATTENTION)
LAYERS = [
    (transformer.DetrTransformerEncoderLayer, dict(self_attn_cfg=ATTENTION)),
    (transformer.DetrTransformerDecoderLayer, CROSS),
    (transformer.DeformableDetrTransformerEncoderLayer, dict(self_attn_cfg=ATTENTION)),
    (transformer.DeformableDetrTransformerDecoderLayer, CROSS),
    (transformer.ConditionalDetrTransformerDecoderLayer, CROSS),
    (transformer.DABDetrTransformerDecoderLayer, CROSS),
    (transformer.Mask2FormerTransformerDecoderLayer, CROSS),
    (
        transformer.GroundingDinoTransformerDecoderLayer,
        CROSS | dict(cross_attn_text_cfg=ATTENTION),
    ),
    (TransformerEncoderLayer, dict(embed_dims=16, num_heads=2, feedforward_channels=32)),
]


@pytest.mark.parametrize(('layer', 'kwargs'), LAYERS)
def test_every_layer_builds_its_ffn_by_type(layer, kwargs):
    ffn_cfg = dict(type='GRKAN', embed_dims=16, feedforward_channels=32)
    kwargs = copy.deepcopy(kwargs)  # some layers write into their configs
    assert type(layer(ffn_cfg=ffn_cfg, **kwargs).ffn) is GRKAN
