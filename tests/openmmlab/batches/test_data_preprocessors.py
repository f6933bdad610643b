"""Data preprocessors for batches, against those of mmengine, mmdet and mmseg."""

import mmdet.models  # noqa: F401, which its data preprocessors follow
import mmseg.models  # noqa: F401
import numpy as np
import pytest
import torch
from equal_batches import assert_equal
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.registry import MODELS, TRANSFORMS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

from kat_mm.errors import ConfigError
from kat_mm.openmmlab.batches.packed_masks import PackedInstanceMasks, packed_masks

COLOURS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
SIZES = {'alike': [(32, 48)] * 3, 'unlike': [(30, 48), (41, 17), (8, 8)]}


def build(kind, scope, **kwargs):
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(dict(type=kind, **kwargs))


def images(sizes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(256, (3, *size), generator=generator).byte() for size in sizes]


IMAGE_ARGUMENTS = {
    'plain': {},
    'colours': COLOURS,
    'flipped': dict(**COLOURS, bgr_to_rgb=True),
    'padded': dict(**COLOURS, pad_size_divisor=32, pad_value=7.5, bgr_to_rgb=True),
    'one mean': dict(mean=[100.0], std=[50.0], pad_size_divisor=8),
}


@pytest.mark.parametrize('sizes', SIZES.values(), ids=SIZES)
@pytest.mark.parametrize('dtype', [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize('arguments', IMAGE_ARGUMENTS.values(), ids=IMAGE_ARGUMENTS)
def test_images(device, arguments, dtype, sizes):
    stock, batched = (
        build(name, 'mmengine', **arguments).to(device)
        for name in ('ImgDataPreprocessor', 'BatchedImgDataPreprocessor')
    )
    batch = [image.to(dtype) for image in images(sizes)]
    assert_equal(batched(dict(inputs=batch)), stock(dict(inputs=batch)))
    if sizes == SIZES['alike']:
        collated = torch.stack(batch)
        assert_equal(batched(dict(inputs=collated)), stock(dict(inputs=collated)))


def detection_batch(sizes, boxes=4):
    generator = torch.Generator().manual_seed(1)
    samples = []
    for height, width in sizes:
        corners = torch.rand(boxes, 4, generator=generator) * 8
        masks = torch.rand(boxes, height, width, generator=generator) < 0.2
        instances = InstanceData(
            bboxes=HorizontalBoxes(corners),
            labels=torch.randint(9, (boxes,), generator=generator),
            masks=BitmapMasks(masks.byte().numpy(), height, width),
        )
        ignored = InstanceData(
            bboxes=HorizontalBoxes(corners[:0]),
            labels=torch.zeros(0, dtype=torch.int64),
            masks=BitmapMasks(np.zeros((0, height, width), np.uint8), height, width),
        )
        meta = dict(img_shape=(height, width), scale_factor=(1.0, 2.0), img_id=len(samples))
        semantic = torch.randint(9, (1, height, width), generator=generator)
        samples.append(
            DetDataSample(
                metainfo=meta,
                gt_instances=instances,
                ignored_instances=ignored,
                gt_sem_seg=PixelData(sem_seg=semantic),
            )
        )
    return dict(inputs=images(sizes), data_samples=samples)


DETECTION_ARGUMENTS = {
    'recipe': dict(pad_mask=True, pad_size_divisor=32),
    'boxes': dict(boxtype2tensor=False, pad_seg=True),
    'augmented': dict(
        pad_mask=True,
        batch_augments=[dict(type='BatchFixedSizePad', size=(64, 96), pad_mask=True)],
    ),
}


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('sizes', SIZES.values(), ids=SIZES)
@pytest.mark.parametrize('arguments', DETECTION_ARGUMENTS.values(), ids=DETECTION_ARGUMENTS)
def test_detection(device, arguments, sizes, training):
    arguments = dict(**COLOURS, bgr_to_rgb=True, **arguments)
    stock, batched = (
        build(name, 'mmdet', **arguments).to(device)
        for name in ('DetDataPreprocessor', 'BatchedDetDataPreprocessor')
    )
    assert isinstance(batched, type(stock))
    expected = stock(detection_batch(sizes), training)
    found = batched(detection_batch(sizes), training)
    if not arguments.get('boxtype2tensor', True):
        for data in (expected, found):
            for sample in data['data_samples']:
                for part in (sample.gt_instances, sample.ignored_instances):
                    part.bboxes = part.bboxes.tensor
    assert_equal(found, expected)


def test_predictions_need_no_samples():
    batched = build('BatchedDetDataPreprocessor', 'mmdet', **COLOURS)
    found = batched(dict(inputs=images(SIZES['unlike'])))
    assert found['inputs'].shape == (3, 3, 41, 48)
    assert found['data_samples'] is None


def test_packed_masks_come_as_one_batch(device):
    sizes = SIZES['unlike']
    batched = build('BatchedDetDataPreprocessor', 'mmdet', pad_mask=True, pad_size_divisor=32)
    data = detection_batch(sizes)
    stock = [sample.gt_instances.masks for sample in data['data_samples']]
    transform = TRANSFORMS.build(dict(type='PackMasks'))
    for sample in data['data_samples']:
        transform(dict(data_samples=sample))
    samples = batched.to(device)(data, training=True)['data_samples']
    masks = [sample.gt_instances.masks for sample in samples]
    assert all(isinstance(part, PackedInstanceMasks) for part in masks)
    for part, expected in zip(masks, stock, strict=True):
        np.testing.assert_array_equal(part.to_ndarray(), expected.pad((64, 64)).to_ndarray())
    batch = packed_masks(masks, batched.device)
    assert batch is masks[0].batch[0]
    assert batch.device.type == device
    assert batch.counts == (4, 4, 4)
    assert set(batch.table[:, -2:].flatten().tolist()) == {64}
    # Others than that batch are packed anew.
    assert packed_masks(masks[::-1], batched.device) is not batch
    assert packed_masks(masks[:2], batched.device).counts == (4, 4)


def test_packed_bitmaps_and_polygons_in_a_batch(device):
    sizes = SIZES['unlike']
    arguments = dict(**COLOURS, pad_mask=True, pad_size_divisor=32)
    stock, batched = (
        build(name, 'mmdet', **arguments).to(device)
        for name in ('DetDataPreprocessor', 'BatchedDetDataPreprocessor')
    )
    data, expected = detection_batch(sizes), detection_batch(sizes)
    for batch in (data, expected):
        polygons = PolygonMasks.random(4, *sizes[1], dtype=float, rng=0)
        batch['data_samples'][1].gt_instances.masks = polygons
    transform = TRANSFORMS.build(dict(type='PackMasks'))
    for sample in data['data_samples']:
        transform(dict(data_samples=sample))
    found = batched(data, training=True)['data_samples']
    for ours, sample in zip(found, stock(expected, training=True)['data_samples'], strict=True):
        assert isinstance(ours.gt_instances.masks, PackedInstanceMasks)
        assert isinstance(ours.gt_instances.masks, type(sample.gt_instances.masks))
        ours, theirs = (part.gt_instances.masks.to_ndarray() for part in (ours, sample))
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize('sizes', SIZES.values(), ids=SIZES)
@pytest.mark.parametrize('kind', ['Img', 'Det'])
def test_three_means_need_three_channels(kind, sizes):
    scope = 'mmengine' if kind == 'Img' else 'mmdet'
    grey = [image[:1] for image in images(sizes)]
    with pytest.raises(AssertionError, match='shape of'):
        build(f'{kind}DataPreprocessor', scope, **COLOURS)(dict(inputs=grey))
    batched = build(f'Batched{kind}DataPreprocessor', scope, **COLOURS)
    with pytest.raises(ConfigError, match=r'3 values, images have 1 channel.* a mean of 1 value'):
        batched(dict(inputs=grey))


@pytest.mark.parametrize('sizes', SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(
    ('channels', 'arguments'),
    [
        (1, dict(mean=[100.0], std=[50.0])),
        (1, {}),
        (4, dict(**COLOURS, bgr_to_rgb=True)),
        (4, dict(bgr_to_rgb=True)),
    ],
)
def test_images_of_other_channels(channels, arguments, sizes):
    stock, batched = (
        build(name, 'mmengine', **arguments)
        for name in ('ImgDataPreprocessor', 'BatchedImgDataPreprocessor')
    )
    batch = [torch.cat([image, image])[:channels] for image in images(sizes)]
    assert_equal(batched(dict(inputs=batch)), stock(dict(inputs=batch)))


def segmentation_batch(sizes, dtype=torch.int64):
    generator = torch.Generator().manual_seed(2)
    samples = []
    for height, width in sizes:
        labels = torch.randint(150, (1, height, width), generator=generator).to(dtype)
        depth = torch.rand(1, height, width, generator=generator)
        meta = dict(img_shape=(height, width), ori_shape=(9, 9))
        samples.append(
            SegDataSample(
                metainfo=meta,
                gt_sem_seg=PixelData(data=labels),
                gt_depth_map=PixelData(data=depth),
            )
        )
    return dict(inputs=images(sizes), data_samples=samples)


SEGMENTATION_ARGUMENTS = {
    'recipe': dict(**COLOURS, size=(64, 64), bgr_to_rgb=True, pad_val=0, seg_pad_val=255),
    'divisor': dict(**COLOURS, size_divisor=32, pad_val=3, seg_pad_val=255),
    'plain': dict(size=(48, 48)),
}


@pytest.mark.parametrize('labels', [torch.int64, torch.uint8])
@pytest.mark.parametrize('sizes', SIZES.values(), ids=SIZES)
@pytest.mark.parametrize('arguments', SEGMENTATION_ARGUMENTS.values(), ids=SEGMENTATION_ARGUMENTS)
def test_segmentation(device, arguments, sizes, labels):
    stock, batched = (
        build(name, 'mmseg', **arguments).to(device)
        for name in ('SegDataPreProcessor', 'BatchedSegDataPreProcessor')
    )
    assert isinstance(batched, type(stock))
    expected = stock(segmentation_batch(sizes), training=True)
    assert_equal(batched(segmentation_batch(sizes, labels), training=True), expected)
    same = segmentation_batch(SIZES['alike'])
    assert_equal(batched(same), stock(segmentation_batch(SIZES['alike'])))


@pytest.mark.parametrize('value', [-1, 0, 256, 1000, 255.0])
@pytest.mark.parametrize('sizes', SIZES.values(), ids=SIZES)
def test_any_padding_of_label_maps_of_bytes(device, sizes, value):
    arguments = dict(size=(48, 48), seg_pad_val=value)
    stock, batched = (
        build(name, 'mmseg', **arguments).to(device)
        for name in ('SegDataPreProcessor', 'BatchedSegDataPreProcessor')
    )
    expected = stock(segmentation_batch(sizes), training=True)
    assert_equal(batched(segmentation_batch(sizes, torch.uint8), training=True), expected)


@pytest.mark.parametrize('sizes', SIZES.values(), ids=SIZES)
def test_mmseg_repeats_a_grey_image_for_three_means(sizes):
    found = []
    for name in ('SegDataPreProcessor', 'BatchedSegDataPreProcessor'):
        batch = segmentation_batch(sizes)
        batch['inputs'] = [image[:1] for image in batch['inputs']]
        found.append(build(name, 'mmseg', **COLOURS, size=(48, 48))(batch, training=True))
    assert_equal(found[1], found[0])


def test_label_maps_of_bytes():
    results = dict(
        img=np.zeros((5, 7, 3), np.uint8),
        gt_seg_map=np.arange(35, dtype=np.uint8).reshape(5, 7)[:, ::-1],
        img_path='a.jpg',
        ori_shape=(5, 7),
    )
    with DefaultScope.overwrite_default_scope('mmseg'):
        stock, packed = (
            TRANSFORMS.build(dict(type=name))(dict(results))
            for name in ('PackSegInputs', 'PackByteSegInputs')
        )
    sample = packed['data_samples'].gt_sem_seg
    assert sample.data.dtype == torch.uint8
    sample.data = sample.data.long()
    assert_equal(packed, stock)


def test_wide_label_maps_stay_as_they_are():
    transform = TRANSFORMS.build(dict(type='PackByteSegInputs'))
    labels = np.full((4, 4), 999, np.int32)
    assert transform(dict(gt_seg_map=labels))['data_samples'].gt_sem_seg.data.max() == 999
    assert 'gt_sem_seg' not in transform(dict(img=np.zeros((4, 4, 3))))['data_samples']
