"""Parts of a model that a checkpoint leaves random are named."""

import logging

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope

import kat_mm.openmmlab  # noqa: F401
from kat_mm.errors import DataError
from kat_mm.openmmlab import checkpoint_checks
from kat_mm.openmmlab.checkpoint_checks import check_all_loaded, warn_of_random_parts

ARCH = {'embed_dims': 16, 'num_layers': 2, 'num_heads': 2}


@pytest.fixture
def model():
    import mmseg.models  # noqa: F401

    head = dict(type='FCNHead', in_channels=16, in_index=0, channels=8, num_convs=1, num_classes=3)
    config = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor'),
        backbone=dict(type='KAT', arch=ARCH, img_size=32),
        decode_head=dict(**head, norm_cfg=dict(type='BN')),
        auxiliary_head=dict(**head, norm_cfg=dict(type='BN')),
    )
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(ConfigDict(config))


def without(weights, *parts):
    return {key: value for key, value in weights.items() if not key.startswith(parts)}


WHOLE = {
    'weights': lambda weights: weights,
    'checkpoint': lambda weights: {'state_dict': weights, 'meta': {'epoch': 1}},
    'of distributed training': lambda weights: {f'module.{k}': v for k, v in weights.items()},
    'and more': lambda weights: weights | {'other.weight': torch.ones(3)},
    'without counters': lambda weights: {k: v for k, v in weights.items() if 'num_batch' not in k},
}
PARTIAL = {
    'backbone': (
        lambda weights: {
            k.removeprefix('backbone.'): v for k, v in weights.items() if k.startswith('backbone.')
        },
        'decode_head, auxiliary_head',
    ),
    'no head': (lambda weights: without(weights, 'decode_head.'), 'decode_head'),
    'no layer': (
        lambda weights: without(weights, 'decode_head.conv_seg.'),
        'decode_head.conv_seg',
    ),
    'no statistics': (
        lambda weights: without(weights, 'decode_head.convs.0.bn.running_mean'),
        'decode_head.convs.0.bn.running_mean',
    ),
    'renamed': (
        lambda weights: {k.replace('decode_head', 'head'): v for k, v in weights.items()},
        'decode_head',
    ),
    'other classes': (
        lambda weights: (
            weights
            | {f'decode_head.conv_seg.{k}': torch.ones(5, *s) for k, s in (('weight', (8, 1, 1)),)}
        ),
        'decode_head.conv_seg.weight',
    ),
}


def changed(model):
    return {key: value + 1 for key, value in model.state_dict().items()}


@pytest.mark.parametrize('case', WHOLE)
def test_whole_models(model, tmp_path, case):
    weights = changed(model)
    torch.save(WHOLE[case](weights), tmp_path / 'a.pth')
    check_all_loaded(model, str(tmp_path / 'a.pth'))
    assert torch.equal(
        model.state_dict()['decode_head.conv_seg.bias'], weights['decode_head.conv_seg.bias']
    )


@pytest.mark.parametrize('case', PARTIAL)
def test_parts_that_stay_random(model, tmp_path, case, monkeypatch):
    logged = []
    monkeypatch.setattr(checkpoint_checks, 'print_log', lambda *args: logged.append(args))
    change, parts = PARTIAL[case]
    path = tmp_path / 'a.pth'
    torch.save(change(changed(model)), path)
    with pytest.raises(DataError) as caught:
        check_all_loaded(model, str(path))
    assert str(caught.value).startswith(
        f'checkpoint {path} has no weights that fit for {parts}: scores would be'
    )
    warn_of_random_parts(model, str(path))
    [(message, _, level)] = logged
    assert f'no weights that fit for {parts}: these start as initialized' in message
    assert level == logging.WARNING


def test_all_prefixed(model, tmp_path):
    """Nothing fits: neither the backbone nor a part."""
    weights = {f'teacher.{key}': value for key, value in changed(model).items()}
    torch.save(weights, tmp_path / 'a.pth')
    with pytest.raises(DataError):
        check_all_loaded(model, str(tmp_path / 'a.pth'))


def test_models_without_our_backbone(tmp_path):
    linear = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    linear[1].weight = linear[0].weight  # tied: one name is enough
    weights = without(linear.state_dict(), '1.weight')
    torch.save(weights, tmp_path / 'a.pth')
    check_all_loaded(linear, str(tmp_path / 'a.pth'))
    torch.save(without(weights, '0.weight'), tmp_path / 'a.pth')
    with pytest.raises(DataError, match=r'fit for 0\.weight, 1\.weight: '):
        check_all_loaded(linear, str(tmp_path / 'a.pth'))
    check_all_loaded(linear, 'https://example.org/a.pth')
    warn_of_random_parts(linear, None)
