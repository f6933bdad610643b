"""Configs with the parts of mmdet and mmseg in the places of ours."""

from pathlib import Path

import mmdet.models  # noqa: F401
import mmseg.models  # noqa: F401
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import kat_mm.openmmlab  # noqa: F401
from kat_mm.errors import ConfigError
from kat_mm.openmmlab.configs import nested, type_name
from kat_mm.openmmlab.packed_masks import PackedInstanceMasks
from kat_mm.openmmlab.random_batches import random_batches
from kat_mm.openmmlab.stock import use_stock_parts

CONFIGS = Path(__file__).parents[2] / 'configs'
OURS_BY_NAME = ('Batched', 'Fused', 'Pack')


def types(config):
    return {type_name(node) for node in nested(config._cfg_dict, 'type')}


@pytest.mark.parametrize('name', ['kat_maskrcnn_coco.py', 'kat_upernet_ade20k.py'])
def test_stock_parts_exist_and_build(name):
    config = Config.fromfile(CONFIGS / name)
    before = types(config)
    use_stock_parts(config)
    after = types(config)
    assert {name for name in before if name.startswith(OURS_BY_NAME)} - {'PackDetInputs'}
    assert {name for name in after if name.startswith(OURS_BY_NAME)} <= {
        'PackDetInputs',
        'PackSegInputs',
    }
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(config.model)
    ours = [part for part in model.modules() if type(part).__module__.startswith('kat_mm')]
    heads = {type(part).__name__ for part in ours}
    assert not {head for head in heads if head.startswith(('Batched', 'Fused'))}


def small_detector():
    config = Config.fromfile(CONFIGS / 'kat_maskrcnn_digits.py')
    pipeline = config.train_dataloader.dataset.pipeline
    pipeline[2].scale = (96, 64)
    config.train_dataloader.batch_size = 2
    return config


@pytest.mark.parametrize('packed', [False, True])
def test_random_batches_of_a_detector(packed):
    config = small_detector()
    if packed:
        config.train_dataloader.dataset.pipeline.append(dict(type='PackMasks'))
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config.model)
        batches = random_batches(config, model, 2)
    assert [len(batch['inputs']) for batch in batches] == [2, 2]
    assert not torch.equal(batches[0]['inputs'][0], batches[1]['inputs'][0])
    for image, sample in zip(batches[0]['inputs'], batches[0]['data_samples'], strict=True):
        assert image.shape == (3, 64, 96)
        instances = sample.gt_instances
        assert isinstance(instances.masks, PackedInstanceMasks) == packed
        assert instances.labels.max() < 10
        boxes = instances.bboxes.tensor
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([96, 64, 96, 64])).all()
        areas = torch.from_numpy(instances.masks.to_ndarray()).flatten(1).sum(1)
        extents = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        torch.testing.assert_close(areas.float(), extents * torch.pi / 4, rtol=0.5, atol=30)
    with DefaultScope.overwrite_default_scope('mmdet'):
        data = model.data_preprocessor(batches[0], training=True)
        losses = model(**data, mode='loss')
    assert torch.isfinite(losses['loss_mask'])


def test_images_of_no_certain_size():
    config = small_detector()
    config.train_dataloader.dataset.pipeline = [dict(type='LoadImageFromFile')]
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config.model)
    with pytest.raises(ConfigError, match='training resizes to one scale'):
        random_batches(config, model, 1)
