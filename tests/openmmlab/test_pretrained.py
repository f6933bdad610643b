"""Published weights in the mm backbone, through init_cfg."""

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

import kat_mm
from kat_mm.errors import ConfigError, DataError, UserError
from kat_mm.openmmlab import KAT

pytest.importorskip('timm')
import timm
import vits
from kats import ARCH, published

VIT_ARCH = {'embed_dims': 64, 'num_layers': 2, 'num_heads': 1}  # of tests/vits.py


def save(path, state, **more):
    torch.save({'state_dict': state, **more}, path)
    return str(path)


def backbone(checkpoint=None, **kwargs):
    init_cfg = checkpoint and {'type': 'Pretrained', 'checkpoint': checkpoint}
    return KAT(ARCH, img_size=64, init_cfg=init_cfg, **kwargs).eval()


def test_what_is_not_used_or_drawn_anew_is_listed(tmp_path, caplog):
    path = save(tmp_path / 'a.pth', published().state_dict())
    backbone(path, pyramid=(8, 8, 8, 8), attention={'rel_pos': True}).init_weights()
    loaded, drawn, unused = caplog.messages
    assert 'loaded 38 tensors' in loaded
    assert 'blocks.0.attn.rel_pos_h' in drawn
    assert 'pyramid.' in drawn
    assert 'norm1' not in drawn
    assert unused.endswith('not used: head.weight, head.bias')


@pytest.mark.parametrize('ffn', ['gr_kan', 'mlp'])
@pytest.mark.parametrize(
    ('windows', 'gated'),
    [
        ({}, (0, 1)),
        ({'shared': 'operator'}, (0, 1)),
        (dict(window_size=2, global_blocks=(1,), global_attention='softmax'), (0,)),
    ],
    ids=['blockwise', 'universal', 'windows'],
)
def test_gated_attention_starts_as_the_softmax_model(windows, gated, ffn, tmp_path, caplog):
    path = tmp_path / 'a.pth'
    if ffn == 'mlp':
        torch.save(vits.vit().state_dict(), path)
        sizes = dict(arch=VIT_ARCH, img_size=32, patch=8, ffn=ffn)
    else:
        save(path, published().state_dict())
        sizes = dict(arch=ARCH, img_size=64)
    init_cfg = {'type': 'Pretrained', 'checkpoint': str(path)}
    model = KAT(
        **sizes, init_cfg=init_cfg, attention=dict(windows, type='KArAt', base='softmax')
    ).eval()
    model.init_weights()
    [drawn] = [text for text in caplog.messages if 'drawn anew' in text]
    parts = ['gate', 'operator.weight', 'operator.units.coefficients']
    keys = [f'blocks.{i}.attn.{part}' for i in gated for part in parts]
    assert sorted(drawn.partition('drawn anew: ')[2].split(', ')) == sorted(keys)
    softmax = {k: v for k, v in windows.items() if k in ('window_size', 'global_blocks')}
    softmax = KAT(**sizes, init_cfg=init_cfg, attention=softmax).eval()
    softmax.init_weights()
    images = torch.randn(2, 3, 80, 64)
    with torch.no_grad():
        for one, other in zip(model(images), softmax(images), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(
    ('name', 'keys'),
    [
        ('mae', ['mask_token', 'decoder_embed.weight']),
        ('clip', ['logit_scale', 'visual.proj']),
    ],
)
def test_parts_of_pretraining_are_listed(name, keys, tmp_path, caplog):
    torch.save(getattr(vits, name)()[1], tmp_path / 'vit.pth')
    init_cfg = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'vit.pth')}
    arch = {**VIT_ARCH, 'pre_norm': name == 'clip'}
    KAT(arch, img_size=32, patch=8, init_cfg=init_cfg).init_weights()
    assert caplog.messages[-1].endswith(f'so not used: {", ".join(keys)}')


def without(key):
    return lambda state: {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (without('blocks.1.mlp.fc1.bias'), 'the checkpoint has no blocks.1.mlp.fc1.bias'),
        (lambda s: {**s, 'blocks.2.norm1.bias': s['norm.bias']}, 'the model has no blocks.2.norm1'),
        (
            lambda s: {**s, 'patch_embed.proj.weight': torch.zeros(48, 1, 8, 8)},
            r'patch_embed.proj.weight: the checkpoint has \(48, 1, 8, 8\), the model \(48, 3, 16',
        ),
        (
            lambda s: {**s, 'blocks.0.mlp.act1.weight_denominator': torch.zeros(4, 4)},
            r'act1.weight_denominator: the checkpoint has \(4, 4\), the model \(8, 4\)',
        ),
        (lambda s: {'fc.weight': torch.zeros(2, 2)}, 'another architecture: the model has no fc'),
        (lambda s: {**s, 'pos_embed': torch.zeros(1, 19, 48)}, 'holds 19 positions, neither of a'),
    ],
)
def test_misfits_are_errors_and_nothing_is_loaded(change, message, tmp_path):
    path = save(tmp_path / 'a.pth', change(published().state_dict()))
    model = backbone(path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match=message):
        model.init_weights()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_prefix_picks_keys(tmp_path):
    state = {f'encoder.{k}': v for k, v in published().state_dict().items()}
    path = save(tmp_path / 'a.pth', {**state, 'decoder.weight': torch.zeros(1)})
    init_cfg = {'type': 'Pretrained', 'checkpoint': path, 'prefix': 'encoder.'}
    model = KAT(ARCH, img_size=64, init_cfg=init_cfg)
    model.init_weights()
    assert torch.equal(model.norm.bias, state['encoder.norm.bias'])
    init_cfg['prefix'] = 'gone'
    with pytest.raises(DataError, match=r"has no keys that start with 'gone\.'"):
        KAT(ARCH, img_size=64, init_cfg=init_cfg).init_weights()


def small_kat(content, folder, arch=None, **kwargs):
    """A KAT of the sizes of `vits`, which starts from these weights."""
    torch.save(content, folder / 'vit.pth')
    init_cfg = {'type': 'Pretrained', 'checkpoint': str(folder / 'vit.pth')}
    arch = {**VIT_ARCH, **(arch or {})}
    return KAT(arch, img_size=32, patch=8, init_cfg=init_cfg, **kwargs)


@pytest.mark.parametrize(
    ('name', 'arch'),
    [
        ('timm_layout', {}),
        ('mae', {}),
        ('dino', {}),
        ('deit3', {'layer_scale': 1.0}),
        ('distilled', {'reg_tokens': 1}),
        ('dinov2', {'layer_scale': 1.0, 'reg_tokens': 4}),
        ('clip', {'pre_norm': True}),
    ],
)
def test_a_vit_starts_a_kat_that_computes_the_same(name, arch, tmp_path):
    vit, content = getattr(vits, name)()
    model = small_kat(content, tmp_path, arch).eval()
    model.init_weights()
    x = torch.randn(2, 3, 32, 32)
    expected = vit.forward_features(x)[:, vit.num_prefix_tokens :].mT.unflatten(2, (4, 4))
    assert (model(x)[0] - expected).abs().max() < 0.05
    plain = small_kat(content, tmp_path, arch, ffn='mlp').eval()
    plain.init_weights()
    # The twin has GELU, CLIP an approximation of it.
    tolerance = 0.05 if name == 'clip' else 1e-4
    torch.testing.assert_close(plain(x)[0], expected, rtol=1e-4, atol=tolerance)


def test_the_vision_tower_of_a_clip_alone(tmp_path):
    content = {k.removeprefix('visual.'): v for k, v in vits.clip()[1].items() if 'visual.' in k}
    model = small_kat(content, tmp_path, {'pre_norm': True})
    model.init_weights()
    assert torch.equal(model.norm.bias, content['ln_post.bias'])


def post_norm():
    sizes = dict(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1, num_classes=3)
    return None, timm.create_model('vit_base_patch16_rpn_224', **sizes).state_dict()


def beit():
    sizes = dict(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1)
    return None, timm.create_model('beit_base_patch16_224', **sizes).state_dict()


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (vits.distilled, 'the model has no reg_token'),
        (post_norm, "are those of a post-norm ViT, as timm's vit_base_patch16_rpn_224"),
        (beit, 'relative positions that depend on no query, as BEiT has'),
    ],
    ids=['distilled', 'post-norm', 'beit'],
)
def test_a_vit_with_parts_that_the_backbone_lacks_is_an_error(make, message, tmp_path):
    with pytest.raises(DataError, match=message):
        small_kat(make()[1], tmp_path).init_weights()


def test_windowed_attention_leaves_registers_out(tmp_path):
    vit, content = vits.distilled()
    model = small_kat(content, tmp_path, attention={'window_size': 2, 'global_blocks': (1,)})
    model.init_weights()
    assert torch.equal(model.norm.bias, vit.norm.bias)


def test_a_clip_with_an_activation_of_its_own(tmp_path):
    """Such as OpenCLIP's of LAION, whose weights are named as OpenAI's."""
    vit, content = vits.clip('gelu')
    torch.save(content, tmp_path / 'vit.pth')
    arch = {**VIT_ARCH, 'pre_norm': True}
    x = torch.randn(2, 3, 32, 32)
    expected = vit.forward_features(x)[:, 1:].mT.unflatten(2, (4, 4))
    errors = []
    for activation in ('gelu', None):
        init_cfg = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'vit.pth')}
        init_cfg['activation'] = activation
        kwargs = dict(img_size=32, patch=8)
        model = KAT(arch, init_cfg=init_cfg, **kwargs).eval()
        model.init_weights()
        errors.append((model(x)[0] - expected).abs().max())
    assert errors[0] < errors[1] / 2
    with pytest.raises(ConfigError, match="unknown activation 'relu' of a ViT; known: gelu, qu"):
        KAT(arch, init_cfg={**init_cfg, 'activation': 'relu'}, **kwargs).init_weights()


def test_a_vit_that_to_kat_fitted_to_images_starts_a_kat_that_computes_the_same(tmp_path):
    vit, x = vits.vit(), torch.randn(2, 3, 32, 32)
    kat_mm.to_kat(vit, samples=x)
    init_cfg = {'type': 'Pretrained', 'checkpoint': save(tmp_path / 'a.pth', vit.state_dict())}
    model = KAT(VIT_ARCH, img_size=32, patch=8, init_cfg=init_cfg).eval()
    model.init_weights()
    expected = vit.forward_features(x)[:, 1:].mT.unflatten(2, (4, 4))
    torch.testing.assert_close(model(x)[0], expected, rtol=1e-5, atol=1e-5)


def test_patches_of_another_size_are_resampled(tmp_path):
    """A smooth image gives nearly the same tokens at the other size of patches."""
    vit = vits.vit(depth=1)
    path = save(tmp_path / 'vit.pth', vit.state_dict())
    init_cfg = {'type': 'Pretrained', 'checkpoint': path}
    arch = {**VIT_ARCH, 'num_layers': 1}
    model = KAT(arch, img_size=64, ffn='mlp', init_cfg=init_cfg).eval()
    model.init_weights()
    coarse = torch.randn(1, 3, 3, 3)
    images = [
        nn.functional.interpolate(coarse, size=(side, side), mode='bicubic', align_corners=False)
        for side in (32, 64)
    ]
    expected = vit.patch_embed(images[0])
    tokens, _ = model.patch_embed(images[1])
    assert (tokens - expected).norm() < 0.1 * expected.norm()


def test_published_weights_are_found_by_name(monkeypatch, tmp_path):
    hub = pytest.importorskip('huggingface_hub')
    source = published()
    torch.save(source.state_dict(), tmp_path / 'pytorch_model.bin')

    def download(name, file, revision):
        assert (name, revision) == ('adamdad/kat_tiny_patch16_224.vitft', 'v1')
        if not (tmp_path / file).exists():
            raise hub.errors.EntryNotFoundError('404')
        return str(tmp_path / file)

    monkeypatch.setattr(hub, 'hf_hub_download', download)
    model = MODELS.build(
        {
            'type': 'KAT',
            'arch': ARCH,
            'img_size': 64,
            'init_cfg': {
                'type': 'Pretrained',
                'checkpoint': 'hf-hub:adamdad/kat_tiny_patch16_224.vitft@v1',
            },
        }
    )
    model.init_weights()
    assert torch.equal(model.norm.bias, source.norm.bias)
