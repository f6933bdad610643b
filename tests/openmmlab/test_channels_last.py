"""Weights with the channels last in memory, as where there is a GPU."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import kat_mm.openmmlab  # noqa: F401
from kat_mm.openmmlab import channels_last
from kat_mm.openmmlab.stock import use_stock_parts


@pytest.mark.parametrize(
    ('path', 'changed'),
    [
        ('configs/kat_upernet_digits.py', ('decode_head', 'auxiliary_head')),
        ('configs/kat_maskrcnn_coco.py', ('neck', 'rpn_head', 'roi_head.mask_head')),
    ],
)
def test_a_seed_gives_the_same_weights_in_any_layout(path, changed, monkeypatch):
    monkeypatch.setattr(channels_last, 'has_gpu', lambda: True)
    ours = Config.fromfile(path)
    ours.model.backbone.update(arch=dict(embed_dims=96, num_layers=12, num_heads=2), init_cfg=None)
    if 'neck' in changed:
        ours.model.neck.in_channels = 96
    stock = Config(ours._cfg_dict.to_dict())
    use_stock_parts(stock)
    if 'neck' in changed:
        stock.model.neck.channels_last = False
    models = []
    for config in (ours, stock):
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope(config.default_scope):
            model = MODELS.build(config.model)
        model.init_weights()
        models.append(model)
    weights, others = (dict(model.named_parameters()) for model in models)
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, others[name]), name
    for part in changed:
        convolutions = [
            m.weight
            for m in models[0].get_submodule(part).modules()
            if isinstance(m, torch.nn.Conv2d)
        ]
        assert convolutions
        for weight in convolutions:
            assert weight.is_contiguous(memory_format=torch.channels_last)
