"""The COCO metric with masks encoded on their device, against mmdet's."""

import pytest
import torch
from mmdet.structures.mask import encode_mask_results
from mmengine.registry import METRICS

from kat_mm.openmmlab.detection import coco_metric
from kat_mm.openmmlab.detection.coco_metric import encode_masks


def sample(number, count, device='cpu'):
    boxes = torch.rand(count, 4) * 20
    masks = torch.rand(count, 32, 48) < 0.5
    return dict(
        img_id=number,
        ori_shape=(32, 48),
        instances=[],
        pred_instances=dict(
            bboxes=boxes.to(device),
            scores=torch.rand(count).to(device),
            labels=torch.randint(3, (count,)).to(device),
            masks=masks.to(device),
        ),
    )


@pytest.fixture
def encodes_all(monkeypatch):
    """Has masks of every device encoded as those of a GPU are, and tells how many."""
    encoded = []

    def encode(masks):
        encoded.append(len(masks))
        return encode_masks(masks)

    monkeypatch.setattr(coco_metric, 'is_encoded_here', lambda masks: True)
    monkeypatch.setattr(coco_metric, 'encode_masks', encode)
    return encoded


def test_results_are_those_of_mmdet(device, encodes_all):
    samples = [sample(1, 3, device), sample(2, 0, device), sample(3, 1, device)]
    results = []
    for kind in ('mmdet.CocoMetric', 'RunLengthCocoMetric'):
        metric = METRICS.build(dict(type=kind, metric=['bbox', 'segm']))
        metric.process({}, samples)
        results.append(metric.results)
    assert encodes_all == [3, 0, 1]
    for (gt, found), (own_gt, own) in zip(*results, strict=True):
        assert own_gt == gt
        assert own.keys() == found.keys()
        assert own['masks'] == found['masks']
        for name in ('bboxes', 'scores', 'labels'):
            assert (own[name] == found[name]).all()


def test_metrics_behind_it_get_what_was_predicted(device, encodes_all, tmp_path):
    dump = dict(type='mmdet.DumpDetResults', out_file_path=str(tmp_path / 'x.pkl'))
    given = sample(1, 3, device)
    expected = METRICS.build(dump)
    expected.process({}, [given])
    predicted = dict(given['pred_instances'])
    metric = METRICS.build(dict(type='RunLengthCocoMetric', metric='segm'))
    metric.process({}, [given])
    assert given['pred_instances'].keys() == predicted.keys()
    assert all(given['pred_instances'][name] is value for name, value in predicted.items())
    dumped = METRICS.build(dump)
    dumped.process({}, [given])
    of_dump, wanted = (m.results[0]['pred_instances']['masks'] for m in (dumped, expected))
    assert of_dump == wanted == metric.results[0][1]['masks']


def test_masks_of_the_host_are_left_to_mmdet():
    assert not coco_metric.is_encoded_here(torch.ones(1, 2, 2))
    assert not coco_metric.is_encoded_here([])
    assert not coco_metric.is_encoded_here(None)


def test_encoded_masks_have_the_bytes_of_mmdets(device):
    masks = torch.rand(4, 32, 48, device=device) < 0.3
    masks[1:3] = torch.tensor([True, False], device=device)[:, None, None]
    assert encode_masks(masks) == encode_mask_results(masks.cpu().numpy())
    assert encode_masks(masks[:0]) == []


def test_encoded_masks_are_left_alone():
    metric = METRICS.build(dict(type='RunLengthCocoMetric', metric='segm'))
    given = sample(1, 1)
    given['pred_instances']['masks'] = [dict(size=[32, 48], counts=b'Pb1')]
    metric.process({}, [given])
    assert metric.results[0][1]['masks'] == given['pred_instances']['masks']
