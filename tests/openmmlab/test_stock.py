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
from kat_mm.openmmlab.batches.packed_masks import PackedInstanceMasks
from kat_mm.openmmlab.batches.random_batches import random_batches
from kat_mm.openmmlab.configs import nested, type_name
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
    assert config.train_dataloader.collate_fn.type == 'pseudo_collate'
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(config.model)
    ours = [part for part in model.modules() if type(part).__module__.startswith('kat_mm')]
    heads = {type(part).__name__ for part in ours}
    assert not {head for head in heads if head.startswith(('Batched', 'Fused'))}


def test_arguments_of_ours_alone_are_dropped():
    config = small_detector()
    config.model.roi_head.padded_masks = True
    use_stock_parts(config)
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert type(MODELS.build(config.model).roi_head).__name__ == 'StandardRoIHead'


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


def test_losses_are_those_of_the_stock_path(device):
    ours, stock = small_detector(), small_detector()
    for config in (ours, stock):  # with the heads of mmdet, which draw samples one by one
        config.model.rpn_head.type, config.model.roi_head.type = 'RPNHead', 'StandardRoIHead'
    ours.train_dataloader.dataset.pipeline.append(dict(type='PackMasks'))
    use_stock_parts(stock)
    losses = []
    with DefaultScope.overwrite_default_scope('mmdet'):
        for config in (ours, stock):
            torch.manual_seed(0)
            model = MODELS.build(config.model)
            model.init_weights()
            model.to(device)
            (batch,) = random_batches(config, model, 1)
            torch.manual_seed(1)
            data = model.data_preprocessor(batch, training=True)
            losses.append(model.parse_losses(model(**data, mode='loss'))[1])
    assert losses[0].keys() == losses[1].keys()
    for name, value in losses[0].items():
        torch.testing.assert_close(value, losses[1][name], rtol=1e-5, atol=1e-6, msg=name)


def test_images_of_no_certain_size():
    config = small_detector()
    config.train_dataloader.dataset.pipeline = [dict(type='LoadImageFromFile')]
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config.model)
    with pytest.raises(ConfigError, match='training resizes to one scale'):
        random_batches(config, model, 1)
