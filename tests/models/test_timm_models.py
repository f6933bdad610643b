import subprocess
import sys

import pytest
import torch
from bad_checkpoints import BAD
from torchvision.models.feature_extraction import create_feature_extractor

import kat_mm  # noqa: F401
from kat_mm.errors import ConfigError, DataError
from kat_mm.models.ffn.gr_kan import GRKAN

timm = pytest.importorskip('timm')

PARAMETERS = dict(
    kat_tiny_patch16_224=5_718_328,
    kat_small_patch16_224=22_051_576,
    kat_base_patch16_224=86_568_568,
)


def create(name='kat_tiny_patch16_224', **kwargs):
    """A KAT of two blocks, which is fast."""
    torch.manual_seed(0)
    return timm.create_model(name, **{'depth': 2, 'img_size': 32, **kwargs}).eval()


def test_a_newcomer_finds_the_models(tmp_path):
    code = """
import torch, timm
import kat_mm
model = timm.create_model('kat_tiny_patch16_224')
print(model(torch.randn(1, 3, 224, 224)).shape, *timm.list_models('kat_*'))
"""
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split('\n')[0] == 'torch.Size([1, 1000]) ' + ' '.join(sorted(PARAMETERS))


@pytest.mark.parametrize('name', PARAMETERS)
def test_number_of_parameters(name):
    with torch.device('meta'):
        model = timm.create_model(name, weight_init='skip')
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_published_weights_are_known():
    names = timm.list_models('kat_*', pretrained=True)
    assert names == sorted([*PARAMETERS, *(f'{name}.vitft' for name in PARAMETERS)])
    config = timm.get_pretrained_cfg('kat_base_patch16_224.vitft')
    assert config.hf_hub_id == 'adamdad/kat_base_patch16_224.vitft'
    assert (config.crop_pct, config.interpolation) == (0.875, 'bicubic')


def test_starts_as_the_mm_backbone_does():
    """GR-KAN layers keep their variance; timm's own initialisation would draw them anew."""
    model = create(depth=1)
    layer = model.blocks[0].mlp
    assert isinstance(layer, GRKAN)
    x = torch.randn(64, 197, 192)
    assert layer(x).var().item() == pytest.approx(1, rel=0.1)
    qkv = model.blocks[0].attn.qkv.weight
    q, k, _ = qkv.view(3, 3, 64, 192).unbind()
    assert (q[0].T @ k[0]).trace() > 20  # mimetic attention: near a multiple of the identity


def test_features_only():
    model = create(features_only=True, out_indices=(0, 1))
    maps = model(torch.randn(2, 3, 32, 32))
    assert [tuple(m.shape) for m in maps] == [(2, 192, 2, 2)] * 2


def test_forward_intermediates():
    model = create()
    x = torch.randn(1, 3, 32, 32)
    features, maps = model.forward_intermediates(x, indices=[0, 1], norm=True)
    torch.testing.assert_close(features, model.forward_features(x))
    torch.testing.assert_close(maps[1].flatten(2).mT, features[:, 1:])


def test_reset_classifier_and_dynamic_size():
    model = create(dynamic_img_size=True)
    model.reset_classifier(7)
    assert model(torch.randn(1, 3, 48, 64)).shape == (1, 7)


def test_grad_checkpointing_gives_the_same_gradients():
    model, x = create(), torch.randn(2, 3, 32, 32)
    gradients = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append(model.blocks[0].mlp.act2.weight_numerator.grad.clone())
    torch.testing.assert_close(*gradients)


def test_parameter_groups():
    model = create()
    assert {'pos_embed', 'cls_token'} <= model.no_weight_decay()
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay

    decayed = param_groups_weight_decay(model, 0.05)[1]['params']
    coefficients = [p for n, p in model.named_parameters() if '.act' in n]
    assert len(coefficients) == 8
    assert not any(p is q for p in coefficients for q in decayed)
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    assert {g['lr_scale'] for g in groups} == {0.125, 0.25, 0.5, 1.0}


def test_weights_that_are_not_used_are_named(tmp_path, caplog):
    state = {f'backbone.{key}': value for key, value in create().state_dict().items()}
    torch.save({**state, 'neck.weight': torch.zeros(1)}, tmp_path / 'kat.pth')
    create(pretrained=True, pretrained_cfg_overlay={'file': str(tmp_path / 'kat.pth')})
    assert 'so not used: neck.weight' in caplog.text


@pytest.mark.parametrize('classes', [1000, 7])
def test_weights_that_are_missing_are_an_error(classes, tmp_path):
    """With another head, timm loads what there is."""
    state = create().state_dict()
    overlay = {'file': str(tmp_path / 'kat.pth')}
    torch.save(state, overlay['file'])
    create(num_classes=classes, pretrained=True, pretrained_cfg_overlay=overlay)
    state.pop('blocks.1.mlp.fc1.bias')
    torch.save(state, overlay['file'])
    with pytest.raises(DataError, match=r'it has no blocks\.1\.mlp\.fc1\.bias'):
        create(num_classes=classes, pretrained=True, pretrained_cfg_overlay=overlay)


@pytest.mark.parametrize('make', BAD)
def test_bad_files(make, tmp_path):
    make(tmp_path / 'kat.pth', create().state_dict())
    with pytest.raises(DataError, match=f'kat.pth {BAD[make]}'):
        create(pretrained=True, pretrained_cfg_overlay={'file': str(tmp_path / 'kat.pth')})


def test_weights_of_another_image_size_are_resampled(tmp_path):
    trained = create()
    path = tmp_path / 'kat.pth'
    torch.save(trained.state_dict(), path)
    overlay = {'file': str(path), 'input_size': (3, 32, 32)}
    model = create(img_size=64, pretrained=True, pretrained_cfg_overlay=overlay)
    assert model(torch.randn(1, 3, 64, 64)).isfinite().all()
    assert torch.equal(model.blocks[1].mlp.fc1.weight, trained.blocks[1].mlp.fc1.weight)


@pytest.mark.parametrize(
    'argument',
    [dict(act_layer='silu'), dict(scale_mlp_norm=True), dict(proj_bias=False), dict(fix_init=True)],
)
def test_arguments_without_effect_are_refused(argument):
    [(name, value)] = argument.items()
    with pytest.raises(ConfigError, match=f'{name}={value!r} has no effect, as .*: leave it out'):
        create(**argument)
    create(**{name: False if value is True else None if name == 'act_layer' else True})


def test_is_traced_by_fx():
    """As timm's own tests do it, of which each node may be a feature."""
    model, x = create(), torch.randn(2, 3, 32, 32)
    traced = create_feature_extractor(model, ['blocks.0.mlp.fc1', 'head'])
    assert traced(x)['blocks.0.mlp.fc1'].shape == (2, 5, 768)
    torch.testing.assert_close(traced(x)['head'], model(x))
    traced(x)['head'].sum().backward()
    assert all(p.grad is not None for p in traced.parameters())


def test_no_network(monkeypatch):
    hub = pytest.importorskip('huggingface_hub')

    def download(*args, **kwargs):
        raise hub.errors.LocalEntryNotFoundError('Please check your connection.\nMore.')

    monkeypatch.setattr('timm.models._hub.hf_hub_download', download)
    with pytest.raises(DataError, match=r'kat_tiny.* Hugging Face .*Please check.*dict\(file='):
        create(pretrained=True)
