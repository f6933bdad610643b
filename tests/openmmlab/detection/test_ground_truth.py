"""The ground truth of a batch as padded tensors."""

import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.structures import InstanceData

from kat_mm.openmmlab.detection.ground_truth import padded_ground_truth


@pytest.mark.parametrize('source', ['same device', 'cpu'])
@pytest.mark.parametrize('counts', [(3, 0, 7, 1), (0, 0), (2,)])
def test_padded_ground_truth(device, source, counts):
    where = device if source == 'same device' else 'cpu'
    instances = [
        InstanceData(
            bboxes=torch.rand(count, 4, device=where),
            labels=torch.randint(1, 80, (count,)).to(where),
        )
        for count in counts
    ]
    boxes, labels, found = padded_ground_truth(instances, torch.device(device))
    most = max([1, *counts])
    assert boxes.shape == (len(counts), most, 4)
    assert labels.shape == (len(counts), most)
    assert found.tolist() == list(counts)
    assert boxes.device.type == labels.device.type == found.device.type == device
    for i, (count, each) in enumerate(zip(counts, instances, strict=True)):
        assert torch.equal(boxes[i, :count].cpu(), each.bboxes.cpu())
        assert torch.equal(labels[i, :count].cpu(), each.labels.cpu())
        assert not boxes[i, count:].any()
        assert not labels[i, count:].any()


def test_boxes_of_mmdets_type():
    boxes = torch.rand(2, 4)
    instances = InstanceData(bboxes=HorizontalBoxes(boxes), labels=torch.zeros(2).long())
    assert torch.equal(padded_ground_truth([instances], 'cpu')[0][0], boxes)
