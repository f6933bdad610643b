"""The necks: the simple pyramid with norms by config, and maps rescaled for mmdet's FPN."""

import mmseg.models  # noqa: F401, registers Feature2Pyramid
import pytest
import torch
from mmcv.cnn import build_norm_layer
from mmengine.registry import MODELS
from torch import nn

from kat_mm.errors import ConfigError
from kat_mm.openmmlab import RescalingFPN, SimplePyramid


def test_as_a_neck_with_an_extra_level():
    neck = MODELS.build(
        {'type': 'SimplePyramid', 'in_channels': 16, 'out_channels': 8, 'num_outs': 5}
    )
    first, last = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 4, 4)
    maps = neck((first, last))
    assert [y.shape[-1] for y in maps] == [16, 8, 4, 2, 1]
    assert torch.equal(maps[4], nn.functional.max_pool2d(maps[3], 1, 2))
    assert torch.equal(maps[0], neck(last)[0])


def test_norms_of_mmcv_and_none():
    assert not any(
        isinstance(m, nn.LayerNorm) for m in SimplePyramid(16, 8, norm_cfg=None).modules()
    )
    batch_norm = SimplePyramid(16, 8, norm_cfg={'type': 'BN'})
    assert any(isinstance(m, nn.BatchNorm2d) for m in batch_norm.modules())
    assert batch_norm.levels['stride16'][0].bias is None


@pytest.mark.parametrize('options', [{}, {'eps': 1e-6}, {'eps': 1e-3}])
def test_a_layer_norm_has_one_epsilon_wherever_a_config_asks_for_it(options):
    norm_cfg = {'type': 'LN2d', **options}
    elsewhere = build_norm_layer(norm_cfg, 8)[1]  # as mmdet's heads do
    own = [
        m for m in SimplePyramid(16, 8, norm_cfg=norm_cfg).modules() if 'LayerNorm' in str(type(m))
    ]
    assert {norm.eps for norm in own} == {elsewhere.eps}
    assert own[0].__class__ is elsewhere.__class__


def test_rescaled_maps_are_those_of_mmseg_and_mmdet():
    """The two necks of a list, in configs before, with the same keys."""
    stock = MODELS.build(
        [
            dict(
                type='mmseg.Feature2Pyramid',
                embed_dim=32,
                norm_cfg=dict(type='GN', num_groups=32),
            ),
            dict(type='mmdet.FPN', in_channels=[32] * 4, out_channels=8, num_outs=5),
        ]
    )
    neck = RescalingFPN(32, 8, num_outs=5)
    neck.load_state_dict(stock.state_dict())
    leaves = [[torch.randn(2, 32, 5, 7, requires_grad=True) for _ in range(4)] for _ in range(2)]
    for ours, theirs in zip(*leaves, strict=True):
        ours.data.copy_(theirs)
    results = [module(maps) for module, maps in zip((neck, stock), leaves, strict=True)]
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
    for maps in results:
        sum(y.square().sum() for y in maps).backward()
    for ours, theirs in zip(*leaves, strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_channels_that_groups_do_not_divide():
    with pytest.raises(ConfigError, match='num_groups=32 does not divide in_channels=48'):
        RescalingFPN(48)
