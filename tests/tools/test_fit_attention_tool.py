import json

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from kat_mm.attention.karat import KArAt
from kat_mm.weights.reading import read_checkpoint

pytestmark = pytest.mark.slow
TAIL = """
_base_ = {base!r}
model = dict(backbone=dict(attention=dict(type='KArAt', basis='b_spline', rank=4), img_size=64))
"""
FEW = ('--batches', 2, '--held-out', 1, '--test', 1, '--batch-size', 3)


def build(config, **attention):
    model = Config.fromfile(config).model
    model.backbone.attention = attention
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(model)


@pytest.fixture
def karat(segmentation_config, tmp_path):
    """A config with KArAt, next to a checkpoint of its softmax version."""
    path = tmp_path / 'karat.py'
    path.write_text(TAIL.format(base=str(segmentation_config)))
    model = build(path, type='softmax')
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, tmp_path / 'softmax.pth')
    return path


@pytest.mark.parametrize('source', [('--random',), ('--size', 64, 64)])
def test_writes_what_the_config_loads_whole(karat, source, run_tool, tmp_path):
    outputs = ('--out', 'out/fitted.pth', '--json', 'out/fit.json', '--plot', 'out/fit.png')
    run = run_tool(
        tmp_path, 'fit_attention.py', karat, 'softmax.pth', *outputs, *FEW, *source
    ).ended_well()
    assert run.stdout.splitlines()[-1] == 'out/fitted.pth'
    assert 'attention      median  worst  uniform' in run.stdout
    [fit] = json.loads((tmp_path / 'out' / 'fit.json').read_text())
    assert fit['name'] == 'blocks.0.attn'
    assert len(fit['errors']) == len(fit['scales']) == 2
    assert fit['rows'] == 2 * 3 * 17
    assert f'{max(fit["errors"]):.3g}' in run.stdout
    Image.open(tmp_path / 'out' / 'fit.png').verify()

    model = build(karat, **Config.fromfile(karat).model.backbone.attention)
    old = read_checkpoint(tmp_path / 'softmax.pth')['state_dict']
    new = read_checkpoint(tmp_path / 'out' / 'fitted.pth')['state_dict']
    model.load_state_dict(new)
    assert isinstance(model.backbone.blocks[0].attn, KArAt)
    for key, value in old.items():
        assert '.qkv.' in key or torch.equal(new[key], value)


def test_errors(karat, segmentation_config, run_tool, tmp_path):
    def error(*arguments, config=karat, checkpoint='softmax.pth', out='fitted.pth'):
        arguments = (config, checkpoint, '--out', out, *FEW, *arguments)
        return run_tool(tmp_path, 'fit_attention.py', *arguments).error()

    gated = error('--cfg-options', 'model.backbone.attention.base=softmax')
    assert gated.startswith("backbone.blocks.0.attn: base='softmax' starts as the softmax model")
    other = error('--cfg-options', 'model.backbone.attention.basis=morlet')
    assert 'Morlet functions are not linear in their coefficients' in other
    assert "no attention of type 'KArAt'" in error(config=segmentation_config)
    assert 'the name must end with .pth or .safetensors' in error(out='fitted.bin')
    assert '--plot a.jpg: the name must end with .png' in error('--plot', 'a.jpg')
    (tmp_path / 'folder').mkdir()
    assert '--json folder: is a folder; name a file' in error('--json', 'folder')
    assert 'checkpoint gone.pth does not exist' in error(checkpoint='gone.pth')
    assert 'made for 4 x 4 tokens' in error()  # images of the data are larger
    assert 'less than 400 batches of 3' in error('--batches', 398)
    fitted = build(karat, **Config.fromfile(karat).model.backbone.attention)
    torch.save({'state_dict': fitted.state_dict(), 'meta': {}}, tmp_path / 'karat.pth')
    assert 'the model has no blocks.0.attn.operator.weight' in error(checkpoint='karat.pth')
