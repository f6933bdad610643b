"""Kinds of parameters, and the numbers that describe them, against numpy's."""

import numpy as np
import pytest
import torch
from torch import nn

from kat_mm.analysis.parameters import by_kind, describe, gather, kinds
from kat_mm.models import KAT


def network(ffn='gr_kan', **options):
    torch.manual_seed(0)
    arch = {'embed_dims': 16, 'num_layers': 2, 'num_heads': 2, 'layer_scale': 0.1, 'reg_tokens': 1}
    backbone = KAT(
        arch, 64, attention=options, ffn=ffn, pyramid=dict(channels=(8, 8), strides=(8, 16))
    )
    return nn.ModuleDict({'backbone': backbone, 'decode_head': nn.Conv2d(8, 3, 1)})


def test_every_parameter_has_one_kind():
    model = network(type='KArAt', base='softmax', published_scales=True)
    found = kinds(model)
    names = [name for group in found.values() for name in group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    block = 'backbone.blocks.0.'
    for kind, name in {
        'KArAt: coefficients': 'attn.operator.units.coefficients',
        'KArAt: scales': 'attn.operator.units.basis_scale',
        'KArAt: W': 'attn.operator.weight',
        'KArAt: gates': 'attn.gate',
        'attention: q, k, v': 'attn.qkv.weight',
        'attention: output': 'attn.proj.weight',
        'rational: numerators': 'mlp.act1.weight_numerator',
        'rational: denominators': 'mlp.act2.weight_denominator',
        'feed-forward: weights': 'mlp.fc2.weight',
        'norms: scales': 'norm1.weight',
        'norms: offsets': 'norm2.bias',
        'layer scales': 'ls1.gamma',
        'biases': 'mlp.fc1.bias',
    }.items():
        assert block + name in found[kind]
    assert 'backbone.reg_token' in found['embeddings']
    assert 'backbone.patch_embed.proj.weight' in found['embeddings']
    assert found['decode_head: weights'] == ['decode_head.weight']
    assert list(found)[:2] == ['KArAt: W', 'KArAt: coefficients']


def test_mlp_with_softmax_and_relative_positions():
    found = kinds(network('mlp', type='softmax', rel_pos=True))
    assert len(found['attention: relative positions']) == 4
    assert not any(kind.startswith(('KArAt', 'rational')) for kind in found)
    assert 'backbone.blocks.1.mlp.fc1.weight' in found['feed-forward: weights']


def test_shared_parameters_are_there_once():
    found = kinds(network(type='KArAt', shared='operator'))
    assert len(found['KArAt: coefficients']) == 1


def test_numbers_are_those_of_numpy():
    values = torch.randn(3001, dtype=torch.float64) ** 3
    numbers, array = describe(values), values.numpy()
    assert numbers['count'] == 3001
    for name, wanted in {
        'mean': array.mean(),
        'std': array.std(),
        'least': array.min(),
        'most': array.max(),
    }.items():
        assert numbers[name] == pytest.approx(wanted)
    for level, value in numbers['quantiles'].items():
        assert value == pytest.approx(np.quantile(array, float(level)))


def test_kinds_with_a_start_have_their_change():
    model = network(type='KArAt')
    weights = model.state_dict()
    start = {k: v + 0.1 * torch.randn_like(v) for k, v in weights.items()}
    del start['decode_head.weight']
    for kind, values, before, numbers in by_kind(model, weights, start):
        names = kinds(model)[kind]
        assert torch.equal(values, gather(weights, names))
        if kind == 'decode_head: weights':
            assert before is None
            assert 'relative_change' not in numbers
        else:
            wanted = (values - before).norm() / before.norm()
            assert numbers['relative_change'] == pytest.approx(wanted.item())
