import re

import pytest
import timm
import torch
import vits
from safetensors.torch import load_file
from timm.models.vision_transformer import checkpoint_filter_fn

from kat_mm.models.timm_models import KATTransformer
from kat_mm.rational import rational
from kat_mm.weights.vit import to_timm_keys

pytestmark = pytest.mark.slow


def converted(run, vit, path, size=32):
    """Checks what a run wrote, and returns how far its features are from those of the ViT."""
    out = run.ended_well().stdout
    stated = float(re.search(r'differ by (\S+) at most', out)[1])
    args = dict(re.findall(r'(\w+)=([^,\n]+)', out))
    kwargs = {key: eval(value, {}, {'token': 'token', 'avg': 'avg'}) for key, value in args.items()}
    model = KATTransformer(**kwargs).eval()
    weights = load_file(path) if path.suffix == '.safetensors' else torch.load(path)['state_dict']
    model.load_state_dict(weights)
    torch.manual_seed(1)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        difference = (model.forward_features(x) - vit.forward_features(x)).abs().max().item()
    assert difference < 3 * stated
    return stated


@pytest.mark.parametrize(
    'name', ['timm_layout', 'mae', 'dino', 'deit3', 'distilled', 'dinov2', 'clip']
)
def test_published_layouts(name, run_tool, tmp_path):
    vit, content = getattr(vits, name)()
    torch.save(content, tmp_path / 'vit.pth')
    run = run_tool(tmp_path, 'convert_weights.py', 'vit.pth', 'out/kat.safetensors')
    assert converted(run, vit, tmp_path / 'out' / 'kat.safetensors') < 0.05


def test_augreg(run_tool, tmp_path):
    vit = vits.augreg(tmp_path / 'vit.npz')
    run = run_tool(tmp_path, 'convert_weights.py', 'vit.npz', 'kat.pth')
    assert converted(run, vit, tmp_path / 'kat.pth') < 0.05


@pytest.mark.parametrize('name', ['timm_layout', 'dinov2'])
@pytest.mark.parametrize(('patch_size', 'img_size'), [(16, None), (None, 48), (4, 32)])
def test_other_sizes_are_resampled_as_timm_does(name, patch_size, img_size, run_tool, tmp_path):
    _, content = getattr(vits, name)()
    torch.save(content, tmp_path / 'vit.pth')
    options = {'--patch-size': patch_size, '--img-size': img_size}
    arguments = [part for option in options.items() if option[1] for part in option]
    run = run_tool(tmp_path, 'convert_weights.py', 'vit.pth', 'kat.pth', *arguments)
    sizes = dict(patch_size=patch_size or 8, img_size=img_size or 64)
    kwargs = dict(init_values=0.1, reg_tokens=4, no_embed_class=True) if name == 'dinov2' else {}
    vit = vits.vit(num_classes=0, **sizes, **kwargs)
    weights = to_timm_keys(content)
    vit.load_state_dict(checkpoint_filter_fn(weights, vit), strict=name == 'dinov2')
    assert converted(run, vit, tmp_path / 'kat.pth', sizes['img_size']) < 0.05


@pytest.mark.parametrize(('dims', 'heads'), [(1152, 16), (128, 2)])
def test_the_heads_are_those_of_published_vits(dims, heads, run_tool, tmp_path):
    vit = vits.vit(embed_dim=dims, num_heads=heads, depth=1, mlp_ratio=0.25)
    torch.save(vit.state_dict(), tmp_path / 'vit.pth')
    run = run_tool(tmp_path, 'convert_weights.py', 'vit.pth', 'kat.pth').ended_well()
    assert f'num_heads={heads},' in run.stdout


def test_a_wider_fit_for_wider_inputs(run_tool, tmp_path):
    torch.save(vits.timm_layout()[1], tmp_path / 'vit.pth')
    arguments = ['vit.pth', 'kat.pth', '--interval', 10]
    run = run_tool(tmp_path, 'convert_weights.py', *arguments).ended_well()
    assert 'gelu: fitted to 0.0067 on [-10, 10]' in run.stdout
    weights = torch.load(tmp_path / 'kat.pth')['state_dict']
    coefficients = [
        weights[f'blocks.1.mlp.act2.weight_{x}'][0] for x in ('numerator', 'denominator')
    ]
    x = torch.linspace(-10, 10, 10_001)
    error = rational(x[:, None], *(c[None] for c in coefficients))[:, 0] - torch.nn.functional.gelu(
        x
    )
    assert error.abs().max() == pytest.approx(0.0067, rel=0.02)


@pytest.mark.parametrize(
    ('change', 'out', 'message'),
    [
        (
            {'blocks.0.attn.relative_position_bias_table': torch.zeros(3, 1)},
            'kat.pth',
            'have biases of relative positions that depend on no query, as BEiT has (blocks.0.attn',
        ),
        ({'blocks.0.mlp.w12.weight': torch.zeros(3, 1)}, 'kat.pth', 'have gated MLPs'),
        ({'other.weight': torch.zeros(1)}, 'kat.pth', 'not of a ViT that KAT can follow: Unexp'),
        ({'blocks.0.mlp.act2.weight_numerator': torch.zeros(1, 6)}, 'kat.pth', 'a KAT already'),
        ({}, 'kat.onnx', 'kat.onnx: the name must end with .pth or .safetensors'),
    ],
)
def test_errors_of_weights(change, out, message, run_tool, tmp_path):
    torch.save({**vits.timm_layout()[1], **change}, tmp_path / 'vit.pth')
    assert message in run_tool(tmp_path, 'convert_weights.py', 'vit.pth', out).error()
    assert not (tmp_path / out).exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--num-heads', 5], '--num-heads 5 does not divide the 64 channels'),
        (['--img-size', 36], '--img-size 36 is no multiple of the patch size, 8 pixels'),
        (
            ['--patch-size', 7, '--img-size', 32],
            '--img-size 32 is no multiple of the patch size, 7',
        ),
        (['--interval', -2], 'gelu: the interval must be two finite numbers low < high'),
    ],
)
def test_errors_of_arguments(arguments, message, run_tool, tmp_path):
    torch.save(vits.timm_layout()[1], tmp_path / 'vit.pth')
    run = run_tool(tmp_path, 'convert_weights.py', 'vit.pth', 'kat.pth', *arguments)
    assert message in run.error()


def test_weights_of_other_architectures(run_tool, tmp_path):
    """They are errors of one line, however many weights do not fit."""
    models = {
        'patch_embed.proj.weight is missing': 'xcit_nano_12_p16_224',
        'Unexpected key(s) in state_dict: "blocks_token_only.0.ls1.gamma"': 'cait_xxs24_224',
    }
    for message, name in models.items():
        torch.save(timm.create_model(name).state_dict(), tmp_path / 'vit.pth')
        error = run_tool(tmp_path, 'convert_weights.py', 'vit.pth', 'kat.pth').error()
        assert message in error
        assert len(error) < 400
    (tmp_path / 'vit.npz').write_bytes(b'no archive')
    error = run_tool(tmp_path, 'convert_weights.py', 'vit.npz', 'kat.pth').error()
    assert error == 'checkpoint vit.npz is damaged or no .npz file. Copy or download it again'
