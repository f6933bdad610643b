"""Packed instance masks, against mmdet's masks."""

import copy
import pickle

import mmcv
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.transforms import Compose
from mmdet.models.utils import mask2ndarray
from mmdet.registry import TRANSFORMS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks, PolygonMasks, mask_target
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from kat_mm.detection import PackedBitmaps, PackedPolygons, pack_bitmaps
from kat_mm.openmmlab.batches.packed_masks import PackedInstanceMasks, on_device, packed_masks

HEIGHT, WIDTH = 24, 40


def polygon_masks(count=3, size=(HEIGHT, WIDTH)):
    return PolygonMasks.random(count, *size, n_verts=7, dtype=np.float64, rng=0)


def bitmap_masks(count=3, size=(HEIGHT, WIDTH)):
    return BitmapMasks(polygon_masks(count, size).to_ndarray().astype(np.uint8), *size)


KINDS = {'bitmaps': bitmap_masks, 'polygons': polygon_masks}


@pytest.fixture(params=KINDS)
def masks(request):
    return KINDS[request.param]()


def assert_same(found, expected):
    assert len(found) == len(expected)
    assert (found.height, found.width) == (expected.height, expected.width)
    np.testing.assert_array_equal(found.to_ndarray(), expected.to_ndarray())


CALLS = {
    'rescale': ((40, 80),),
    'resize': ((31, 17),),
    'flip': ('horizontal',),
    'crop': (np.array([3, 4, 20, 17]),),
    'translate': ((HEIGHT, WIDTH), 3),
    'shear': ((HEIGHT, WIDTH), 0.2),
    'rotate': ((HEIGHT, WIDTH), 20.0, (WIDTH / 2, HEIGHT / 2)),
    'pad': ((32, 64),),
}


@pytest.mark.parametrize('name', CALLS)
def test_methods_of_mmdets_masks(masks, name):
    packed = PackedInstanceMasks.pack(masks)
    assert_same(getattr(packed, name)(*CALLS[name]), getattr(masks, name)(*CALLS[name]))
    np.testing.assert_array_equal(packed.areas, masks.areas)
    assert torch.equal(packed.get_bboxes('hbox').tensor, masks.get_bboxes('hbox').tensor)


def test_other_methods():
    masks = bitmap_masks()
    packed = PackedInstanceMasks.pack(masks)
    arguments = 50, 60, 3, 5
    assert_same(packed.expand(*arguments), masks.expand(*arguments))
    assert_same(packed.pad((30, 50), pad_val=1), masks.pad((30, 50), pad_val=1))
    tensors = [each.to_tensor(torch.uint8, 'cpu') for each in (packed, masks)]
    assert torch.equal(*tensors)
    np.testing.assert_array_equal(packed.masks, masks.masks)
    np.testing.assert_array_equal(np.stack(list(packed)), masks.masks)
    assert_same(PackedInstanceMasks.pack(polygon_masks()).to_bitmap(), polygon_masks().to_bitmap())


@pytest.mark.parametrize(
    'index', [np.array([2, 0]), np.array([True, False, True]), slice(1, 3), np.array([], int)]
)
def test_indexing(masks, index):
    assert_same(PackedInstanceMasks.pack(masks)[index], masks[index])


@pytest.mark.parametrize('count', [0, 2])
@pytest.mark.parametrize('kind', KINDS.values())
def test_joining_and_pickling(kind, count):
    masks = kind(count) if count else kind(2)[:0]
    packed = PackedInstanceMasks.pack(masks)
    copy = pickle.loads(pickle.dumps(packed))
    assert_same(copy, masks)
    assert_same(PackedInstanceMasks.cat([packed, copy]), type(masks).cat([masks, masks]))


def test_copies_of_a_sample_share_what_is_packed(masks):
    expected = masks.to_ndarray()
    packed = PackedInstanceMasks.pack(masks)
    part = on_device([packed, packed], 'cpu')[1]
    sample = DetDataSample()
    sample.gt_instances = InstanceData(masks=part, labels=torch.arange(3))
    copied = copy.deepcopy(sample).gt_instances.masks
    assert copied is not part
    assert copied.packed is part.packed
    assert copied.batch[0] is part.batch[0]
    assert copied.batch[1] == 1
    for mask in copied.masks:
        for array in mask if isinstance(mask, list) else [mask]:
            array[...] = 0
    copied.height *= 2
    np.testing.assert_array_equal(part.to_ndarray(), expected)


def test_instance_data_takes_them(masks):
    instances = InstanceData(labels=torch.arange(3), masks=PackedInstanceMasks.pack(masks))
    assert_same(instances[torch.tensor([True, False, True])].masks, masks[np.array([0, 2])])
    joined = InstanceData.cat([instances, instances])
    assert_same(joined.masks, type(masks).cat([masks, masks]))


@pytest.mark.parametrize('padded', [False, True])
def test_mask_targets_of_mmdet(masks, padded, device):
    packed = PackedInstanceMasks.pack(masks)
    if padded:
        packed, masks = (each.pad((HEIGHT + 5, WIDTH + 9)) for each in (packed, masks))
    boxes = torch.rand(20, 4) * torch.tensor([20.0, 12, 20, 12])
    boxes[:, 2:] += boxes[:, :2]
    boxes[0] = torch.tensor([-3.0, -3, 60, 60])
    arguments = [boxes.to(device)], [torch.randint(3, (20,), device=device)]
    config = ConfigDict(mask_size=28)
    expected = mask_target(*arguments, [masks], config)
    assert torch.equal(mask_target(*arguments, [packed], config), expected)


def test_boxes_beyond_the_image(masks):
    boxes, inds = np.array([[-5.0, -3, 50, 30]], np.float32), np.array([1])
    found, expected = (
        each.crop_and_resize(boxes, (9, 11), inds)
        for each in (PackedInstanceMasks.pack(masks), masks)
    )
    assert_same(found, expected)


def test_a_batch_is_of_mmdets_or_packed_masks(masks):
    kind = BitmapMasks if isinstance(masks, BitmapMasks) else PolygonMasks
    parts = [masks, masks[np.array([1])].pad((32, 48))]
    batch = packed_masks(parts, 'cpu')
    assert isinstance(batch, PackedBitmaps if kind is BitmapMasks else PackedPolygons)
    assert batch.counts == (3, 1)
    assert batch.table[:, -2:].tolist() == [[HEIGHT, WIDTH]] * 3 + [[32, 48]]
    again = packed_masks([PackedInstanceMasks.pack(part) for part in parts], 'cpu')
    assert torch.equal(batch.buffer, again.buffer)


@pytest.mark.parametrize('dtype', [np.uint8, bool, np.int64, np.float32])
def test_what_is_not_zero_is_of_the_instance(dtype):
    bitmaps = np.random.default_rng(0).integers(0, 3, (3, HEIGHT, WIDTH)).astype(dtype)
    bitmaps[:, :, :9] = bitmaps[1] = 0
    packed = PackedInstanceMasks.pack(BitmapMasks(bitmaps, HEIGHT, WIDTH)).packed
    assert torch.equal(packed.buffer, pack_bitmaps(torch.from_numpy(bitmaps)).buffer)


def test_other_masks_are_refused():
    with pytest.raises(TypeError, match='BitmapMasks or PolygonMasks to be packed, got'):
        PackedInstanceMasks.pack(np.zeros((1, 2, 2)))


def test_transform_packs_the_masks_of_a_sample(masks):
    sample = DetDataSample(
        gt_instances=InstanceData(labels=torch.zeros(3), masks=masks),
        ignored_instances=InstanceData(labels=torch.zeros(0), masks=masks[np.array([], int)]),
    )
    transform = TRANSFORMS.build(dict(type='PackMasks'))
    sample = transform(dict(data_samples=sample))['data_samples']
    assert isinstance(sample.gt_instances.masks, PackedInstanceMasks)
    assert_same(sample.gt_instances.masks, masks)
    assert len(sample.ignored_instances.masks) == 0
    boxes_only = dict(data_samples=DetDataSample(gt_instances=InstanceData(labels=torch.zeros(2))))
    assert transform(boxes_only) is boxes_only


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    old=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    new=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    direction=st.sampled_from(['horizontal', 'vertical', 'diagonal']),
)
def test_boxes_are_resized_and_flipped_as_whole_masks(seed, old, new, direction):
    rng = np.random.default_rng(seed)
    bitmaps = np.zeros((3, *old), np.uint8)
    for bitmap in bitmaps:
        (y0, y1), (x0, x1) = (np.sort(rng.integers(0, side + 1, 2)) for side in old)
        bitmap[y0:y1, x0:x1] = rng.random((y1 - y0, x1 - x0)) < 0.5
    masks = BitmapMasks(bitmaps, *old)
    packed = PackedInstanceMasks.pack(masks)
    assert_same(packed.resize(new), masks.resize(new))
    assert_same(packed.flip(direction), masks.flip(direction))
    scale = (max(new) + 90, min(new) + 90)  # mmcv makes no image of less than a pixel
    found = packed.rescale(scale).flip(direction).pad((400, 400))
    assert isinstance(found, PackedInstanceMasks)
    assert_same(found, masks.rescale(scale).flip(direction).pad((400, 400)))


@pytest.mark.parametrize('place', [2, 5], ids=['early', 'late'])
def test_pipelines_give_the_same_samples(place, tmp_path):
    mmcv.imwrite(np.random.default_rng(0).integers(0, 255, (48, 64, 3)), str(tmp_path / 'a.png'))
    polygons = [polygon.tolist() for (polygon,) in polygon_masks(4, (48, 64)).masks]
    instances = [
        dict(bbox=[1, 2, 30, 40], bbox_label=i, mask=[polygon], ignore_flag=int(i == 2))
        for i, polygon in enumerate(polygons)
    ]
    steps = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='Resize', scale=(133, 80), keep_ratio=True),
        dict(type='RandomFlip', prob=1.0),
        dict(type='PackDetInputs'),
    ]
    packing = [*steps[:place], dict(type='PackMasks'), *steps[place:]]
    with DefaultScope.overwrite_default_scope('mmdet'):
        stock, ours = (
            Compose(pipeline)(
                dict(img_path=str(tmp_path / 'a.png'), height=48, width=64, instances=instances)
            )['data_samples']
            for pipeline in (steps, packing)
        )
    for name in ('gt_instances', 'ignored_instances'):
        assert isinstance(ours.get(name).masks, PackedInstanceMasks)
        assert_same(ours.get(name).masks, stock.get(name).masks)
        assert torch.equal(ours.get(name).bboxes.tensor, stock.get(name).bboxes.tensor)


def test_writes_in_place_count(masks):
    packed = PackedInstanceMasks.pack(masks)
    copy = packed.pad((HEIGHT, WIDTH))
    for each in (packed, masks):
        part = each.masks[1]
        (part if isinstance(part, np.ndarray) else part[0])[:6] = 1
    assert_same(packed, masks)
    for found in (packed.flip(), pickle.loads(pickle.dumps(packed)).flip()):
        assert_same(found, masks.flip())
    assert_same(packed[np.array([1])], masks[np.array([1])])
    assert not np.array_equal(copy.to_ndarray(), masks.to_ndarray())
    for each in (packed, masks):
        each.masks[0] = each.masks[2]
    assert_same(packed, masks)
    packed.masks = masks.masks[:2]
    assert_same(packed, masks[np.array([0, 1])])


def test_writes_reach_the_copy_on_a_device(masks, device):
    packed = PackedInstanceMasks.pack(masks)
    (there,) = on_device([packed], torch.device(device))
    there.masks[0] = there.masks[1]
    batch = packed_masks([there], device)
    expected = packed_masks([masks[np.array([1, 1, 2])]], 'cpu')
    assert torch.equal(batch.buffer.cpu(), expected.buffer)


def sample_of(masks, seed=0):
    boxes = masks.get_bboxes('hbox')
    return dict(
        img=np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8),
        img_shape=(HEIGHT, WIDTH),
        gt_bboxes=boxes,
        gt_bboxes_labels=np.arange(len(boxes)),
        gt_ignore_flags=np.zeros(len(boxes), bool),
        gt_masks=masks,
    )


def test_random_erasing_and_copy_paste_behind_packing():
    erasing = dict(type='RandomErasing', n_patches=4, ratio=0.4, bbox_erased_thr=1.0)
    pasting = dict(type='CopyPaste', mask_occluded_thr=3, selected=False)
    found = []
    for pack in (PackedInstanceMasks.pack, lambda masks: masks):
        np.random.seed(0)  # noqa: NPY002 - of which mmdet draws
        erased = TRANSFORMS.build(erasing)(sample_of(pack(bitmap_masks())))
        other = bitmap_masks()[np.array([2, 0])].flip()
        source = sample_of(pack(other), seed=1)
        pasted = TRANSFORMS.build(pasting)({**erased, 'mix_results': [source]})
        found.append((erased, pasted))
    for ours, stock in zip(*found, strict=True):
        assert len(stock['gt_bboxes']) > 1
        assert_same(ours['gt_masks'], stock['gt_masks'])
        assert torch.equal(ours['gt_bboxes'].tensor, stock['gt_bboxes'].tensor)
        np.testing.assert_array_equal(ours['img'], stock['img'])
    assert found[1][0]['gt_masks'].areas.sum() < bitmap_masks().areas.sum()


def test_the_classes_that_mmdet_asks_for(masks):
    packed = PackedInstanceMasks.pack(masks)
    kind = type(masks)
    for found in (packed, packed[:1], packed.pad((30, 50)), pickle.loads(pickle.dumps(packed))):
        assert isinstance(found, kind)
        assert isinstance(found, PackedInstanceMasks)
    np.testing.assert_array_equal(mask2ndarray(packed), masks.to_ndarray())
    # As some transforms of mmdet make masks anew.
    assert_same(type(packed)(masks.masks, HEIGHT, WIDTH), masks)
    assert isinstance(type(packed).random(2, 9, 9), PackedInstanceMasks)


def test_the_visualizer_draws_packed_ground_truth(masks):
    drawn = []
    for each in (masks, PackedInstanceMasks.pack(masks)):
        np.random.seed(0)  # noqa: NPY002 - of which mmdet draws
        instances = InstanceData(
            labels=torch.arange(3), masks=each, bboxes=masks.get_bboxes('hbox').tensor
        )
        visualizer = DetLocalVisualizer()
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        sample = DetDataSample(gt_instances=instances)
        visualizer.add_datasample('image', image, sample, draw_pred=False)
        drawn.append(visualizer.get_image())
    assert drawn[0].any()
    np.testing.assert_array_equal(drawn[1], drawn[0])


def test_joining_packed_and_mmdets_masks(masks):
    packed = PackedInstanceMasks.pack(masks)
    expected = type(masks).cat([masks, masks])
    assert_same(type(packed).cat([packed, masks]), expected)
    assert_same(PackedInstanceMasks.cat([masks, packed]), expected)
    assert_same(type(masks).cat([masks, packed]), expected)
    joined = InstanceData.cat([InstanceData(masks=packed), InstanceData(masks=masks)])
    assert_same(joined.masks, expected)


def test_joining_none_or_two_kinds():
    both = [PackedInstanceMasks.pack(kind()) for kind in KINDS.values()]
    with pytest.raises(TypeError, match='all bitmaps or all polygons, got PackedBitmapMasks and'):
        PackedInstanceMasks.cat(both)
    with pytest.raises(ValueError, match='none'):
        PackedInstanceMasks.cat([])


@pytest.mark.parametrize('size', [(HEIGHT, WIDTH), (1, 1), (1, 9)])
@pytest.mark.parametrize('kind', KINDS.values())
def test_negative_strides(kind, size):
    masks = kind(3, size)
    if isinstance(masks, BitmapMasks):
        masks.masks[:2, :, :1] = 1
    reversed_masks = masks[np.arange(len(masks))]
    if isinstance(masks, BitmapMasks):
        reversed_masks.masks = masks.masks[::-1, ::-1, ::-1]
    else:
        reversed_masks.masks = [[p[::-1] for p in mask] for mask in masks.masks]
    assert_same(PackedInstanceMasks.pack(reversed_masks), reversed_masks)


@pytest.mark.parametrize('kind', KINDS.values())
def test_no_masks_of_an_image_of_no_pixels(kind):
    none = kind(1)[np.array([], int)]
    packed = PackedInstanceMasks.pack(none)
    for scale in ((0, 0), 0.001):
        assert_same(packed.rescale(scale), none.rescale(scale))
    for size in ((0, 5), (5, 0), (0, 0)):
        assert_same(packed.resize(size), none.resize(size))
        assert_same(packed.resize(size).flip(), none.resize(size).flip())
