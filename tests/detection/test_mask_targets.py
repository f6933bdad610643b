"""Mask targets, against mmdet's: equal bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from outlines import scene

import kat_mm.openmmlab  # noqa: F401, which lets mmdet run
from kat_mm.detection import cat_masks, mask_targets, pack_bitmaps, pack_polygons

mask_target = pytest.importorskip('mmdet.structures.mask').mask_target
SIZE = (28, 28)


def batch(seeds):
    """Returns mmdet's polygons, images, boxes and instances of some scenes, and packed polygons."""
    from mmdet.structures.mask import PolygonMasks

    scenes = [scene(seed) for seed in seeds]
    polygons = [
        PolygonMasks([[polygon.numpy() for polygon in each] for each in instances], *size)
        for instances, size, _, _ in scenes
    ]
    packed = cat_masks([pack_polygons(instances, size) for instances, size, _, _ in scenes])
    boxes, which = ([each[i] for each in scenes] for i in (2, 3))
    return polygons, boxes, which, packed


def as_bitmaps(polygons):
    stock = [each.to_bitmap() for each in polygons]
    return stock, cat_masks([pack_bitmaps(torch.from_numpy(each.masks)) for each in stock])


def expected_targets(masks, boxes, which, device, size=SIZE, soft=False):
    from mmengine.config import ConfigDict

    boxes, which = ([each.to(device) for each in part] for part in (boxes, which))
    return mask_target(boxes, which, masks, ConfigDict(mask_size=size, soft_mask_target=soft))


def targets(packed, boxes, which, device, size=SIZE, **kwargs):
    images = torch.arange(len(boxes)).repeat_interleave(len(boxes[0]))
    flat = (part.to(device) for part in (torch.cat(boxes), images, torch.cat(which)))
    return mask_targets(packed.to(device), *flat, size, **kwargs)


@pytest.mark.parametrize('size', [SIZE, (14, 28), (1, 1), (56, 33)])
@pytest.mark.parametrize('seed', range(4))
def test_polygons_equal_mmdets(device, size, seed):
    polygons, boxes, which, packed = batch(range(3 * seed, 3 * seed + 3))
    expected = expected_targets(polygons, boxes, which, device, size)
    found = targets(packed, boxes, which, device, size)
    assert found.dtype == torch.float32
    assert 0.05 < found.mean() < 0.95
    assert torch.equal(found, expected)


@pytest.mark.parametrize('size', [SIZE, (14, 28), (1, 1), (56, 33)])
@pytest.mark.parametrize('seed', range(4))
def test_bitmaps_equal_mmdets(device, size, seed):
    polygons, boxes, which, _ = batch(range(3 * seed, 3 * seed + 3))
    stock, packed = as_bitmaps(polygons)
    expected = expected_targets(stock, boxes, which, device, size)
    found = targets(packed, boxes, which, device, size)
    assert torch.equal(found, expected)
    soft = targets(packed, boxes, which, device, size, binarize=False)
    assert torch.equal(soft, expected_targets(stock, boxes, which, device, size, soft=True))


def test_bitmaps_of_padded_images_equal_mmdets(device):
    polygons, boxes, which, _ = batch([5, 6])
    stock, packed = as_bitmaps(polygons)
    sizes = [(each.height + 9, each.width + 31) for each in stock]
    stock = [each.pad(size) for each, size in zip(stock, sizes, strict=True)]
    expected = expected_targets(stock, boxes, which, device)
    assert torch.equal(targets(packed.padded(sizes), boxes, which, device), expected)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), height=st.integers(1, 40), width=st.integers(1, 40))
def test_both_forms_equal_mmdets_whatever_the_scene(seed, height, width):
    polygons, boxes, which, packed = batch([seed])
    arguments = boxes, which, 'cpu', (height, width)
    assert torch.equal(targets(packed, *arguments), expected_targets(polygons, *arguments))
    stock, packed = as_bitmaps(polygons)
    assert torch.equal(targets(packed, *arguments), expected_targets(stock, *arguments))


@pytest.mark.gpu
@pytest.mark.parametrize('device', ['cuda'], indirect=True)
@pytest.mark.parametrize('kind', ['bitmaps', 'polygons'])
def test_a_gpu_computes_what_a_cpu_does(device, kind):
    polygons, boxes, which, packed = batch(range(6))
    if kind == 'bitmaps':
        packed = as_bitmaps(polygons)[1]
    on_cpu, on_gpu = (targets(packed, boxes, which, d).cpu() for d in ('cpu', device))
    # RoIAlign's sums are fused there: averages of a half may fall on the other side.
    assert (on_cpu != on_gpu).double().mean() < (1e-3 if kind == 'bitmaps' else 1e-9)


@pytest.mark.parametrize('kind', ['bitmaps', 'polygons'])
def test_boxes_without_an_instance_have_empty_masks(device, kind):
    polygons, boxes, which, packed = batch([1])
    if kind == 'bitmaps':
        packed = as_bitmaps(polygons)[1]
    expected = targets(packed, boxes, which, device)
    without = which[0].clone()
    without[::2] = -1
    found = targets(packed, boxes, [without], device)
    assert not found[::2].any()
    assert torch.equal(found[1::2], expected[1::2])


@pytest.mark.parametrize(
    'pack', [lambda: pack_bitmaps(torch.zeros(0, 9, 9)), lambda: pack_polygons([], (9, 9))]
)
@pytest.mark.parametrize('boxes', [0, 3])
def test_images_without_instances(device, pack, boxes):
    nowhere = torch.full((boxes,), -1)
    arguments = [torch.rand(boxes, 4)], [nowhere]
    found = targets(pack(), *arguments, device)
    assert found.shape == (boxes, *SIZE)
    assert not found.any()


def test_bad_arguments():
    packed = pack_polygons([], (9, 9))
    index = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r'boxes must be \[K, 4\], images and instances \[K\]'):
        mask_targets(packed, torch.rand(2, 5), index, index, SIZE)
    with pytest.raises(ValueError, match='polygons have no averages'):
        mask_targets(packed, torch.rand(2, 4), index, index, SIZE, binarize=False)


@pytest.mark.parametrize('kind', ['bitmaps', 'polygons'])
def test_opcheck(kind):
    polygons, boxes, which, packed = batch([2])
    chosen = boxes[0], torch.zeros_like(which[0]), which[0], 7, 9
    if kind == 'bitmaps':
        packed = as_bitmaps(polygons)[1]
        op, made_of = torch.ops.kat_mm.bitmap_targets.default, (packed.words,)
    else:
        op = torch.ops.kat_mm.polygon_targets.default
        made_of = packed.polygon_table, packed.vertices
    torch.library.opcheck(op, (packed.starts, packed.table, *made_of, *chosen))
