import re

import pytest
import torch
import vits
from safetensors.torch import load_file

from kat_mm.models.timm_entry import KATTransformer

pytestmark = pytest.mark.slow


def converted(run, vit, path):
    """Checks what a run wrote, and returns how far its features are from those of the ViT."""
    out = run.ended_well().stdout
    stated = float(re.search(r'differ by (\S+) at most', out)[1])
    args = dict(re.findall(r'(\w+)=([^,\n]+)', out))
    kwargs = {key: eval(value, {}, {'token': 'token', 'avg': 'avg'}) for key, value in args.items()}
    model = KATTransformer(**kwargs).eval()
    weights = load_file(path) if path.suffix == '.safetensors' else torch.load(path)['state_dict']
    model.load_state_dict(weights)
    torch.manual_seed(1)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        difference = (model.forward_features(x) - vit.forward_features(x)).abs().max().item()
    assert difference < 3 * stated
    return stated


@pytest.mark.parametrize('name', ['timm_layout', 'mae', 'dino', 'deit3', 'dinov2', 'clip'])
def test_published_layouts(name, run_tool, tmp_path):
    vit, content = getattr(vits, name)()
    torch.save(content, tmp_path / 'vit.pth')
    run = run_tool(tmp_path, 'convert_weights.py', 'vit.pth', 'out/kat.safetensors')
    assert converted(run, vit, tmp_path / 'out' / 'kat.safetensors') < 0.05


def test_augreg(run_tool, tmp_path):
    vit = vits.augreg(tmp_path / 'vit.npz')
    run = run_tool(tmp_path, 'convert_weights.py', 'vit.npz', 'kat.pth')
    assert converted(run, vit, tmp_path / 'kat.pth') < 0.05


@pytest.mark.parametrize(
    ('change', 'out', 'message'),
    [
        (
            {'blocks.0.attn.relative_position_bias_table': torch.zeros(3, 1)},
            'kat.pth',
            'these weights have relative position biases, as BEiT has (blocks.0.attn.relative',
        ),
        ({'blocks.0.mlp.w12.weight': torch.zeros(3, 1)}, 'kat.pth', 'have gated MLPs'),
        ({'other.weight': torch.zeros(1)}, 'kat.pth', 'not of a ViT that KAT can follow: Unexp'),
        ({}, 'kat.onnx', 'kat.onnx: the name must end with .pth or .safetensors'),
    ],
)
def test_errors(change, out, message, run_tool, tmp_path):
    torch.save({**vits.timm_layout()[1], **change}, tmp_path / 'vit.pth')
    assert message in run_tool(tmp_path, 'convert_weights.py', 'vit.pth', out).error()
    assert not (tmp_path / out).exists()
