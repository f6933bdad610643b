"""`to_kat` on the transformers of each library: same outputs, and they train."""

from copy import deepcopy
from functools import partial

import pytest
import timm
import torch
import torchvision
from mmdet.models.backbones import SwinTransformer
from mmdet.models.layers.transformer import DetrTransformerDecoder, DetrTransformerEncoder
from mmseg.models.backbones.mit import MixVisionTransformer
from torch import nn

import kat_mm
from kat_mm.rational import GroupRational

VIT = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2)
ATTENTION = dict(embed_dims=32, num_heads=2)
FFN = dict(embed_dims=32, feedforward_channels=64, act_cfg=dict(type='ReLU', inplace=True))
IMAGES = (2, 3, 64, 64)
TOKENS = (2, 7, 32)

# Builders, shapes of inputs, class and first name of the MLPs, and how many.
MODELS = {
    'timm ViT': (
        partial(timm.models.VisionTransformer, **VIT),
        [(2, 3, 32, 32)],
        ('Mlp', 'blocks.0.mlp', 2),
    ),
    'timm ViT, SiLU': (
        partial(timm.models.VisionTransformer, act_layer=nn.SiLU, **VIT),
        [(2, 3, 32, 32)],
        ('Mlp', 'blocks.0.mlp', 2),
    ),
    'timm Swin': (
        partial(
            timm.models.SwinTransformer,
            img_size=64,
            embed_dim=16,
            depths=(1, 1),
            num_heads=(1, 2),
            window_size=4,
        ),
        [IMAGES],
        ('Mlp', 'layers.0.blocks.0.mlp', 2),
    ),
    'torchvision ViT': (
        partial(torchvision.models.VisionTransformer, 32, 8, 2, 2, 32, 64),
        [(2, 3, 32, 32)],
        ('MLPBlock', 'encoder.layers.encoder_layer_0.mlp', 2),
    ),
    'mmdet Swin': (
        partial(
            SwinTransformer, 224, embed_dims=8, depths=(1,) * 4, num_heads=(1,) * 4, window_size=2
        ),
        [IMAGES],
        ('FFN', 'stages.0.blocks.0.ffn', 4),
    ),
    'mmseg MiT': (
        partial(MixVisionTransformer, embed_dims=8, num_layers=(1,) * 4, num_heads=(1,) * 4),
        [IMAGES],
        ('MixFFN', 'layers.0.1.0.ffn', 4),
    ),
    'mmdet DETR encoder': (
        partial(DetrTransformerEncoder, 2, dict(self_attn_cfg=ATTENTION, ffn_cfg=FFN)),
        [TOKENS, TOKENS, None],
        ('FFN', 'layers.0.ffn', 2),
    ),
    'mmdet DETR decoder': (
        partial(
            DetrTransformerDecoder,
            2,
            dict(self_attn_cfg=ATTENTION, cross_attn_cfg=ATTENTION, ffn_cfg=FFN),
        ),
        [TOKENS, TOKENS, TOKENS, TOKENS, TOKENS, None],
        ('FFN', 'layers.0.ffn', 2),
    ),
}


@pytest.fixture(params=MODELS)
def case(request):
    """A model with random weights that matter, its inputs and what is known about its MLPs."""
    build, shapes, facts = MODELS[request.param]
    model = build()
    model.eval()  # mm's train and eval return nothing
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.1)
    return model, [shape and torch.randn(shape) for shape in shapes], facts


def tensors(value):
    return [value] if isinstance(value, torch.Tensor) else [t for v in value for t in tensors(v)]


@pytest.mark.parametrize(('with_samples', 'closeness'), [(False, 0.02), (True, 0.004)])
def test_outputs_stay_within_the_error_of_the_fit(case, with_samples, closeness):
    model, inputs, (kind, first_name, count) = case
    model.double()
    inputs = [x if x is None else x.double() for x in inputs]
    before = deepcopy(model)
    report = kat_mm.to_kat(model, samples=tuple(inputs) if with_samples else None)
    assert [mlp.kind for mlp in report.converted] == [kind] * count
    assert report.converted[0].name == first_name
    assert not report.left

    calls, hidden = {}, {}
    for mlp in report.converted:
        module = before.get_submodule(mlp.name)
        (act,) = {m for m in module.modules() if type(m).__name__ == mlp.activation}
        module.register_forward_pre_hook(partial(keep, calls, mlp.name), with_kwargs=True)
        act.register_forward_pre_hook(partial(keep, hidden, mlp.name), with_kwargs=True)
    with torch.no_grad():
        expected = tensors(before(*inputs))
        for mlp in report.converted:
            args, kwargs = calls[mlp.name]
            y = before.get_submodule(mlp.name)(*args, **kwargs)
            change = (model.get_submodule(mlp.name)(*args, **kwargs) - y).abs().max()
            ((h,), _) = hidden[mlp.name]
            last = [m for m in model.get_submodule(mlp.name).modules() if hasattr(m, 'weight')][-1]
            assert mlp.interval[0] <= h.min() <= h.max() <= mlp.interval[1]
            assert 0 < change <= mlp.error * last.weight.flatten(1).abs().sum(1).max() + 1e-6
        for got, want in zip(tensors(model(*inputs)), expected, strict=True):
            assert (got - want).std() < closeness * want.std()


def keep(calls, name, module, args, kwargs):
    calls[name] = deepcopy((args, kwargs))  # an activation may write into its input


def assert_channels(channels, act, args):
    assert args[0].shape[act.channel_dim] in channels


def test_it_trains_and_is_saved(case):
    model, inputs, (_, _, count) = case
    before, twin = deepcopy(model), deepcopy(model)
    report = kat_mm.to_kat(model)
    model.train()
    acts = [module for module in model.modules() if isinstance(module, GroupRational)]
    assert len(acts) == 2 * count
    for mlp in report.converted:
        for act in model.get_submodule(mlp.name).modules():
            if isinstance(act, GroupRational):
                act.register_forward_pre_hook(partial(assert_channels, mlp.channels[:2]))
    fresh = deepcopy([act.state_dict() for act in acts])
    sum(y.square().mean() for y in tensors(model(*inputs))).backward()
    torch.optim.AdamW(model.parameters(), lr=1e-2).step()
    for act, coefficients in zip(acts, fresh, strict=True):
        for name, value in act.state_dict().items():
            assert not torch.equal(value, coefficients[name])

    kat_mm.to_kat(twin)
    missing, unexpected = twin.load_state_dict(before.state_dict(), strict=False)
    assert {key.rpartition('.')[2] for key in missing} == {'weight_numerator', 'weight_denominator'}
    assert not unexpected
    twin.load_state_dict(model.state_dict())
    model.eval()
    for got, want in zip(tensors(twin(*inputs)), tensors(model(*inputs)), strict=True):
        assert torch.equal(got, want)
