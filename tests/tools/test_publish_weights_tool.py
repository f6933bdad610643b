import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from kat_mm.models import KAT
from kat_mm.weights.reading import read_checkpoint

pytestmark = pytest.mark.slow
CONFIG = """
custom_imports = dict(imports=['kat_mm.openmmlab'])
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    pretrained='weights/that_training_started_from.pth',
    backbone=dict(
        type='KAT', arch=dict(embed_dims=32, num_layers=2, num_heads=2), img_size=64,
        pyramid=(8, 8, 8, 8),
    ),
    decode_head=dict(type='FCNHead', in_channels=8, channels=8, num_convs=1, num_classes=3),
)
"""


@pytest.fixture
def trained(tmp_path):
    """A config and a checkpoint of its model in a folder: the model."""
    (tmp_path / 'config.py').write_text(CONFIG)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(Config.fromfile(tmp_path / 'config.py').model)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, tmp_path / 'iter_2.pth')
    return model


@pytest.mark.parametrize('out', ['out/kat.pth', 'kat.safetensors'])
def test_the_backbone_in_the_published_layout(trained, out, run_tool, tmp_path):
    run = run_tool(tmp_path, 'publish_weights.py', 'config.py', 'iter_2.pth', out).ended_well()
    said = run.stdout.splitlines()[-3:]
    assert said[0].startswith('left out: the pyramid, ')
    assert said[1:] == ['loaded back into a new backbone: 38 tensors, all the same', out]
    content = read_checkpoint(tmp_path / out)
    weights = content['state_dict'] if out.endswith('.pth') else content
    assert weights['blocks.1.mlp.act2.weight_numerator'].shape == (1, 6)
    assert weights['blocks.1.mlp.act2.weight_denominator'].shape == (8, 4)
    plain = KAT(dict(embed_dims=32, num_layers=2, num_heads=2), img_size=64)
    plain.load_state_dict(weights)
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, trained.backbone.get_parameter(name)), name


def test_timm_takes_it(trained, run_tool, tmp_path):
    timm = pytest.importorskip('timm')
    run_tool(tmp_path, 'publish_weights.py', 'config.py', 'iter_2.pth', 'kat.pth').ended_well()
    sizes = dict(embed_dim=32, depth=2, num_heads=2, img_size=64, num_classes=0)
    overlay = dict(file=str(tmp_path / 'kat.pth'), num_classes=0)
    model = timm.create_model(
        'kat_tiny_patch16_224', pretrained=True, pretrained_cfg_overlay=overlay, **sizes
    )
    expected = trained.backbone.blocks[1].mlp.act2.weight_denominator
    assert torch.equal(model.blocks[1].mlp.act2.weight_denominator, expected)


@pytest.mark.parametrize(
    ('change', 'out', 'message'),
    [
        (lambda s: s, 'kat.onnx', 'kat.onnx: the name must end with .pth or .safetensors'),
        (lambda s: s, 'config.py/kat.pth', 'config.py/kat.pth cannot be written (FileExistsError'),
        (
            lambda s: {k: v for k, v in s.items() if 'decode_head' not in k},
            'kat.pth',
            'checkpoint weights.pth is not of the model: missing keys in source state_dict: decode',
        ),
        (
            lambda s: {**s, 'backbone.norm.bias': torch.zeros(3)},
            'kat.pth',
            'norm.bias: the checkpoint has (3,), the model (32,)',
        ),
        (lambda s: {}, 'kat.pth', 'checkpoint weights.pth holds no weights'),
    ],
)
def test_errors(change, out, message, trained, run_tool, tmp_path):
    torch.save({'state_dict': change(trained.state_dict())}, tmp_path / 'weights.pth')
    run = run_tool(tmp_path, 'publish_weights.py', 'config.py', 'weights.pth', out)
    assert message in run.error()
    assert not (tmp_path / out).exists()
