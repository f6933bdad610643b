"""Published weights, in every layout and by every way that they are loaded."""

import pytest
import torch
from mmengine.runner.checkpoint import load_checkpoint

from kat_mm.errors import DataError
from kat_mm.rational import published_state_dict

pytest.importorskip('timm')
import kats
from bad_checkpoints import BAD


def by_init_cfg(model, path):
    model.backbone.init_cfg = {'type': 'Pretrained', 'checkpoint': path}
    model.init_weights()


def by_load_from(model, path):
    load_checkpoint(model, path)


def into_the_backbone_alone(model, path):
    load_checkpoint(model.backbone, path)


WAYS = [by_init_cfg, by_load_from, into_the_backbone_alone]


@pytest.mark.parametrize('layout', kats.LAYOUTS)
@pytest.mark.parametrize('way', WAYS)
def test_layouts_in_mm(way, layout, tmp_path):
    source = kats.published()
    path = kats.save(kats.LAYOUTS[layout](published_state_dict(source)), tmp_path / layout)
    model = kats.Detector()
    way(model, path)
    x = torch.randn(2, 3, 64, 64)
    expected = kats.features(source, x)
    torch.testing.assert_close(model.eval()(x)[0], expected, rtol=1e-5, atol=1e-5)


def file_of_pretrained(path):
    return dict(pretrained=True, pretrained_cfg_overlay=dict(file=path, num_classes=5))


def checkpoint_path(path):
    return dict(checkpoint_path=path)


@pytest.mark.parametrize('layout', kats.LAYOUTS)
@pytest.mark.parametrize('way', [file_of_pretrained, checkpoint_path])
def test_layouts_in_timm(way, layout, tmp_path):
    source = kats.published()
    path = kats.save(kats.LAYOUTS[layout](published_state_dict(source)), tmp_path / layout)
    model = kats.timm.create_model(kats.NAME, **kats.SIZES, num_classes=5, **way(path)).eval()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(x), source(x), rtol=1e-5, atol=1e-5)


def wider(path, state):
    torch.save(kats.published(embed_dim=96).state_dict(), path)


def deeper(path, state):
    torch.save({'model': kats.published(depth=3).state_dict()}, path)


def another_detector(path, state):
    state = kats.published(embed_dim=96).state_dict()
    torch.save({'state_dict': {f'backbone.{k}': v for k, v in state.items()}}, path)


def resnet(path, state):
    torch.save({'conv1.weight': torch.zeros(64, 3, 7, 7), 'fc.bias': torch.zeros(9)}, path)


OTHER_MODELS = {
    wider: r'another architecture: blocks\.0\.attn\.proj\.bias: the checkpoint has \(96,\), the '
    r'model \(48,\)',
    deeper: r'another architecture: the model has no blocks\.2\.',
    another_detector: r'another architecture: .*the checkpoint has \(96,\), the model \(48,\)',
    resnet: r'another architecture: .*conv1\.weight',
}


MESSAGES = {**BAD, **OTHER_MODELS}


@pytest.mark.parametrize('make', MESSAGES)
@pytest.mark.parametrize('way', WAYS)
def test_bad_files_in_mm(way, make, tmp_path, capsys):
    make(tmp_path / 'a.pth', kats.published().state_dict())
    model = kats.Detector()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(DataError, match=MESSAGES[make]):
        way(model, str(tmp_path / 'a.pth'))
    assert 'this ran' not in capsys.readouterr().out
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_gated_attention_starts_as_the_published_model(tmp_path):
    source = kats.published()
    path = kats.save(published_state_dict(source), tmp_path / 'kat.pth')
    model = kats.Detector(attention=dict(type='KArAt', base='softmax'))
    by_init_cfg(model, path)
    x = torch.randn(2, 3, 64, 64)
    expected = kats.features(source, x)
    torch.testing.assert_close(model.eval()(x)[0], expected, rtol=1e-5, atol=1e-5)
