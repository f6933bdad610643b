import pytest
import torch

from kat_mm.errors import DataError
from kat_mm.weights.layout import left_out, to_kat_keys, weights_of

WEIGHTS = {
    'patch_embed.proj.weight': torch.ones(2, 3, 4, 4),
    'blocks.0.mlp.act1.weight_numerator': torch.zeros(1, 6),
    'blocks.0.mlp.act1.weight_denominator': torch.zeros(8, 4),
    'head.weight': torch.zeros(5, 2),
}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    'wrap',
    [
        lambda w: w,
        lambda w: {'state_dict': w, 'epoch': 3},
        lambda w: {'model': w, 'args': None},
        lambda w: {'state_dict': {'other': torch.zeros(1)}, 'state_dict_ema': w},
        lambda w: {'model': {'state_dict': w}},
        lambda w: {f'module.{key}': value for key, value in w.items()},
        lambda w: {'model': {f'_orig_mod.module.{key}': value for key, value in w.items()}},
        lambda w: {**{f'backbone.{k}': v for k, v in w.items()}, 'neck.weight': torch.zeros(1)},
    ],
)
def test_wrappers_and_prefixes(wrap):
    assert same(to_kat_keys(wrap(WEIGHTS)), WEIGHTS)


def test_flashkat_names():
    renamed = {
        key.replace('weight_numerator', 'numerator_v').replace(
            'weight_denominator', 'denominator_v'
        ): value
        for key, value in WEIGHTS.items()
    }
    assert renamed.keys() != WEIGHTS.keys()
    assert same(to_kat_keys(renamed), WEIGHTS)


def test_what_is_left_out_has_a_name():
    ema = {f'backbone.{key}': value for key, value in WEIGHTS.items()}
    content = {
        'state_dict': WEIGHTS,
        'model_ema': {'state_dict': {**ema, 'neck.weight': torch.zeros(1), 'version': 2}},
        'optimizer': {},
    }
    assert left_out(content, to_kat_keys(content)) == ['state_dict', 'neck.weight', 'version']
    assert left_out(WEIGHTS, to_kat_keys(WEIGHTS)) == []


def test_other_keys_stay():
    weights = {**WEIGHTS, 'blocks.0.ls1.gamma': torch.ones(2), 'fc_norm.weight': torch.ones(2)}
    assert same(to_kat_keys(weights), weights)


@pytest.mark.parametrize('content', [{}, [], 3, {'state_dict': {}}, {'epoch': 3}, None])
def test_no_weights(content):
    with pytest.raises(DataError, match=r'a\.pth holds no weights: it must be a state dict'):
        weights_of(content, 'a.pth')
