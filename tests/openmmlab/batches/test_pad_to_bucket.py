"""Padding to few sizes gives what padding to that size by mmdet gives."""

import pytest
import torch
from mmdet.models.data_preprocessors import BatchFixedSizePad
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData

from kat_mm.errors import ConfigError
from kat_mm.openmmlab.batches.pad_to_bucket import PadToBucket


def batch(height, width):
    sample = DetDataSample(metainfo=dict(img_shape=(height, width)))
    masks = BitmapMasks(torch.ones(2, height, width, dtype=torch.uint8).numpy(), height, width)
    sample.gt_instances = InstanceData(bboxes=torch.rand(2, 4), masks=masks)
    sample.gt_sem_seg = PixelData(sem_seg=torch.ones(1, height, width, dtype=torch.int64))
    return torch.rand(1, 3, height, width), [sample]


@pytest.mark.parametrize(
    ('old', 'size'),
    [((20, 30), (24, 32)), ((24, 32), (24, 32)), ((25, 30), (32, 32)), ((30, 20), (32, 24))],
)
def test_a_batch_gets_the_smallest_size_that_holds_it(old, size):
    pad = MODELS.build(dict(type='PadToBucket', buckets=[(32, 32), (24, 32), (32, 24)]))
    inputs, samples = batch(*old)
    expected = BatchFixedSizePad(size, pad_mask=True, pad_seg=True)(
        inputs.clone(), [sample.clone() for sample in samples]
    )
    images, (sample,) = pad(inputs, samples)
    assert torch.equal(images, expected[0])
    for key in ('batch_input_shape', 'pad_shape'):
        assert sample.get(key) == expected[1][0].get(key)
    masks, wanted = sample.gt_instances.masks, expected[1][0].gt_instances.masks
    assert (masks.height, masks.width) == size
    assert (masks.masks == wanted.masks).all()
    assert torch.equal(sample.gt_sem_seg.sem_seg, expected[1][0].gt_sem_seg.sem_seg)


def test_what_no_size_holds_stays_as_it_is(monkeypatch):
    told = []
    monkeypatch.setattr(
        'kat_mm.openmmlab.batches.pad_to_bucket.print_log', lambda text, *_: told.append(text)
    )
    pad = PadToBucket([(24, 32)])
    for _ in range(2):
        images, _ = pad(*batch(40, 30))
        assert images.shape[2:] == (40, 30)
    assert told == ['PadToBucket: none of the buckets [(24, 32)] holds a batch of (40, 30)']


@pytest.mark.parametrize('height', range(200, 801, 100))
@pytest.mark.parametrize('width', [800, 1067, 1333])
def test_images_of_800_x_1333_have_a_size(height, width):
    pad = PadToBucket()
    for size in ((height, width), (width, height)):
        images = pad(torch.zeros(1, 1, *size), None)[0]
        assert tuple(images.shape[2:]) in pad.buckets


@pytest.mark.parametrize('buckets', [[], [(3,)], [(3, 0)], [3]])
def test_sizes_that_are_none_are_refused(buckets):
    with pytest.raises(ConfigError, match='buckets'):
        PadToBucket(buckets)


def test_as_a_batch_augment_of_mmdet():
    config = dict(
        type='DetDataPreprocessor',
        mean=[0.0] * 3,
        std=[1.0] * 3,
        pad_mask=True,
        pad_size_divisor=4,
        batch_augments=[dict(type='PadToBucket', buckets=[(32, 48)])],
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        preprocessor = MODELS.build(config)
    images, samples = [], []
    for height, width in ((30, 20), (21, 40)):
        inputs, (sample,) = batch(height, width)
        images.append(inputs[0])
        samples.append(sample)
    data = preprocessor(dict(inputs=images, data_samples=samples), training=True)
    assert data['inputs'].shape == (2, 3, 32, 48)
    assert torch.equal(data['inputs'][0, :, :30, :20], images[0])
    assert all(sample.batch_input_shape == (32, 48) for sample in data['data_samples'])
    masks = data['data_samples'][1].gt_instances.masks
    assert (masks.height, masks.width) == (32, 48)
    data = preprocessor(dict(inputs=images[:1], data_samples=samples[:1]), training=False)
    assert data['inputs'].shape == (1, 3, 32, 20)
