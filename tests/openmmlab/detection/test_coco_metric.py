"""The COCO metric with masks encoded on their device, against mmdet's."""

import copy

import torch
from mmdet.structures.mask import encode_mask_results
from mmengine.registry import METRICS

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


def test_results_are_those_of_mmdet(device):
    samples = [sample(1, 3, device), sample(2, 0, device), sample(3, 1, device)]
    results = []
    for kind in ('mmdet.CocoMetric', 'RunLengthCocoMetric'):
        metric = METRICS.build(dict(type=kind, metric=['bbox', 'segm']))
        metric.process({}, copy.deepcopy(samples))
        results.append(metric.results)
    for (gt, found), (own_gt, own) in zip(*results, strict=True):
        assert own_gt == gt
        assert own.keys() == found.keys()
        assert own['masks'] == found['masks']
        for name in ('bboxes', 'scores', 'labels'):
            assert (own[name] == found[name]).all()


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
