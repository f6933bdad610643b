"""Packed masks: what comes out is what went in."""

import pickle

import pytest
import torch
from outlines import scene

from kat_mm.detection import cat_masks, pack_bitmaps, pack_crops, pack_polygons


def random_bitmaps(count=4, height=37, width=70):
    return (torch.rand(count, height, width) < 0.3).byte()


@pytest.mark.parametrize('shape', [(4, 37, 70), (1, 1, 1), (3, 8, 64), (0, 5, 6)])
def test_bitmaps_come_back(shape):
    bitmaps = random_bitmaps(*shape)
    packed = pack_bitmaps(bitmaps)
    assert len(packed) == shape[0]
    assert torch.equal(packed.bitmaps(), bitmaps) or not len(bitmaps)


def test_a_mask_of_nothing_has_an_empty_box():
    bitmaps = torch.zeros(2, 6, 9, dtype=torch.uint8)
    bitmaps[1, 2:4, 3:8] = 1
    packed = pack_bitmaps(bitmaps)
    assert packed.table[:, :5].tolist() == [[0, 0, 0, 0, 0], [3, 2, 5, 2, 0]]
    assert torch.equal(packed.bitmaps(), bitmaps)


def test_small_boxes_take_few_bytes():
    bitmaps = torch.zeros(8, 800, 1333, dtype=torch.bool)
    bitmaps[:, 100:200, 300:360] = True
    assert len(pickle.dumps(pack_bitmaps(bitmaps))) < 10_000


def test_bitmaps_of_a_batch():
    parts = [random_bitmaps(count) for count in (2, 0, 3)]
    packed = cat_masks([pack_bitmaps(part) for part in parts])
    assert packed.counts == (2, 0, 3)
    assert packed.starts.tolist() == [0, 2, 2]
    assert torch.equal(packed.bitmaps(), torch.cat(parts))


def test_padding_changes_sizes_alone():
    bitmaps = random_bitmaps(2, 20, 30)
    packed = pack_bitmaps(bitmaps)
    padded = packed.padded([(32, 64)])
    assert torch.equal(padded.bitmaps()[:, :20, :30], bitmaps)
    assert padded.bitmaps().shape == (2, 32, 64)
    assert padded.bitmaps().sum() == bitmaps.sum()
    assert packed.table[:, -2:].tolist() == [[20, 30]] * 2


def test_polygons_of_a_batch():
    scenes = [scene(seed)[:2] for seed in range(3)]
    packed = cat_masks([pack_polygons(*each) for each in scenes])
    expected = [polygon for instances, _ in scenes for each in instances for polygon in each]
    found = [packed.vertices[a : a + n].flatten() for a, n in packed.polygon_table.tolist()]
    assert len(found) == len(expected)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    counts = [len(each) for instances, _ in scenes for each in instances]
    assert packed.table[:, 1].tolist() == counts
    assert packed.table[:, 0].tolist() == [sum(counts[:i]) for i in range(len(counts))]


def test_kinds_do_not_mix():
    with pytest.raises(TypeError, match='one kind, got PackedBitmaps and PackedPolygons'):
        cat_masks([pack_crops([], [], (4, 4)), pack_polygons([], (4, 4))])


def test_they_move_and_pickle():
    packed = pack_polygons(*scene(0)[:2])
    assert packed.to('cpu') is packed
    copy = pickle.loads(pickle.dumps(packed))
    assert torch.equal(copy.buffer, packed.buffer)
    assert (copy.counts, copy.polygons) == (packed.counts, packed.polygons)
