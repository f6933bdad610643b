"""Rational activations keep their coefficients where a model draws all of its weights anew.

DETR, Sparse R-CNN and Mask2Former draw every parameter of more than one dimension in their
transformers by xavier_uniform_.
"""

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.hub import get_config
from mmengine.registry import DefaultScope

from kat_mm.rational import GroupRational

BACKBONE = dict(
    type='KAT',
    arch=dict(embed_dims=16, num_layers=1, num_heads=2),
    pyramid=(8, 8, 8, 8),
)


def shrunken(config):
    """The model of a shipped config, on a small backbone, with one layer in each transformer."""
    model = get_config(f'mmdet::{config}').model
    outputs = model.backbone.out_indices
    model.backbone = dict(BACKBONE, out_indices=outputs)
    for part in (model.get('neck'), model.get('panoptic_head')):
        if part and 'in_channels' in part:
            part.in_channels = [8] * len(outputs)
    make_rational(model)
    return model


def make_rational(config):
    """Makes every activation of a config rational, and every transformer one layer deep."""
    for item in config if isinstance(config, list) else [config]:
        if isinstance(item, dict):
            for key, value in item.items():
                if key == 'num_layers':
                    item[key] = 1
                elif key.endswith('act_cfg') and value is not None:
                    item[key] = dict(type='GroupRational')
                else:
                    make_rational(value)


@pytest.mark.parametrize(
    ('config', 'count'),
    [
        ('detr/detr_r50_8xb2-150e_coco.py', 2),
        ('sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py', 12),
        ('mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', 3),
    ],
)
def test_coefficients_outlive_init_weights(config, count):
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(shrunken(config))
        backbone = set(model.backbone.modules())
        model.init_weights()
    fresh = GroupRational().state_dict()
    activations = [m for m in model.modules() if type(m) is GroupRational and m not in backbone]
    assert len(activations) == count
    for act in activations:
        for name, value in act.state_dict().items():
            assert torch.equal(value, fresh[name])
