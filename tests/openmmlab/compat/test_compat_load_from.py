"""Checkpoints through mmengine's load_from, for models that have a KAT and for others."""

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.runner import Runner, checkpoint
from mmengine.runner.checkpoint import load_checkpoint
from torch import nn

from kat_mm.errors import DataError

pytest.importorskip('timm')
import kats
import vits
from bad_checkpoints import code


@pytest.fixture
def messages(monkeypatch):
    texts = []

    def note(text, *args, **kwargs):
        texts.append(str(text))

    monkeypatch.setattr('kat_mm.models.pretrained.print_log', note)
    monkeypatch.setattr('mmengine.runner.checkpoint.print_log', note)
    return texts


def test_every_key_is_used_or_listed(tmp_path, messages):
    state = kats.published().state_dict()
    path = kats.save({'state_dict': state, 'state_dict_ema': state}, tmp_path / 'a.pth')
    load_checkpoint(kats.Detector(), path)
    text = '\n'.join(messages)
    assert 'loaded 38 tensors of the checkpoint' in text
    assert 'so not used: state_dict, head.weight, head.bias' in text
    assert 'missing keys in source state_dict: neck.weight, neck.bias' in text
    with pytest.raises(RuntimeError, match=r'missing keys in source state_dict: neck\.weight'):
        load_checkpoint(kats.Detector(), path, strict=True)


def test_a_vit_becomes_a_kat(tmp_path):
    vit = vits.vit()
    path = kats.save(vit.state_dict(), tmp_path / 'vit.pth')
    arch = {'embed_dims': 64, 'num_layers': 2, 'num_heads': 1}
    model = kats.Detector(arch, img_size=32, patch=8).eval()
    load_checkpoint(model, path)
    x = torch.randn(2, 3, 32, 32)
    expected = vit.forward_features(x)[:, 1:].mT.unflatten(2, (4, 4))
    assert (model(x)[0] - expected).abs().max() < 0.05


@pytest.mark.parametrize(
    'wrap', [lambda state: state, lambda state: {'state_dict': state}, lambda s: {'model': s}]
)
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_a_detector_is_taken_whole(wrap, prefix, tmp_path):
    source, model = kats.Detector(), kats.Detector()
    nn.init.normal_(source.neck.weight)
    state = source.state_dict()
    content = wrap({prefix + key: value for key, value in state.items()})
    load_checkpoint(model, kats.save(content, tmp_path / 'a.pth'), strict=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_a_wrapped_model_is_told_from_its_wrapper(tmp_path):
    source, model = kats.Detector(), kats.Detector()
    wrapped = nn.parallel.DataParallel(model)
    load_checkpoint(wrapped, kats.save(source.state_dict(), tmp_path / 'a.pth'), strict=True)
    assert torch.equal(model.backbone.pos_embed, source.backbone.pos_embed)


def test_other_models_load_as_before(tmp_path):
    source, model = nn.Linear(2, 2), nn.Linear(2, 2)
    content = {'state_dict': {**source.state_dict(), 'other': torch.zeros(1)}}
    load_checkpoint(model, kats.save(content, tmp_path / 'a.pth'))
    assert torch.equal(model.weight, source.weight)


def test_hub_ids(monkeypatch, tmp_path):
    hub = pytest.importorskip('huggingface_hub')
    source, model = kats.published(), kats.Detector()
    kats.save(source.state_dict(), tmp_path / 'model.safetensors')
    monkeypatch.setattr(hub, 'hf_hub_download', lambda name, file: str(tmp_path / file))
    load_checkpoint(model, 'adamdad/kat_tiny_patch16_224')
    assert torch.equal(model.backbone.norm.bias, source.norm.bias)


@pytest.mark.parametrize(
    'name', ['https://example.org/a.pth', 'torchvision://resnet18', 'open-mmlab://resnet50_caffe']
)
def test_downloads_are_read_without_running_code(name, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda url, path: code(path, {}))
    monkeypatch.setattr(
        checkpoint, 'load_url', lambda *_, **__: pytest.fail('mmengine downloads it itself')
    )
    with pytest.raises(DataError, match='refused as it could run code'):
        load_checkpoint(nn.Linear(1, 1), name)
    assert 'this ran' not in capsys.readouterr().out


def test_averaged_weights_start_from_a_plain_file(tmp_path):
    source = kats.published()
    path = kats.save(source.state_dict(), tmp_path / 'a.pth')
    runner = Runner(
        kats.Detector(),
        work_dir=str(tmp_path),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            dataset=[{'inputs': torch.zeros(3, 64, 64)}] * 2,
            sampler=dict(type='DefaultSampler', shuffle=False),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        custom_hooks=[dict(type='EMAHook')],
        load_from=path,
        log_level='ERROR',
    )
    runner.train()
    [hook] = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    assert torch.equal(hook.ema_model.module.backbone.norm.bias, source.norm.bias)
