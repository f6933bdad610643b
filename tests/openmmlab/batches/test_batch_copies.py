"""Copies of batches: tensors by one buffer, and data elements around them."""

from collections import namedtuple

import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData

from kat_mm.openmmlab.batches.batch_copies import _copied, map_tensors, to_device

TENSORS = [
    torch.randn(3, 4),
    torch.arange(5),
    torch.tensor([True, False, True]),
    torch.randn(2, 3, dtype=torch.float64),
    torch.zeros(0, 4),
    torch.tensor(7),
    torch.randn(4, 3).mT,
    torch.randint(9, (3, 5), dtype=torch.uint8),
    torch.randn(3).half(),
    torch.randn(2).bfloat16(),
    torch.tensor(7).expand(1),
    torch.ones(1, requires_grad=True).expand(3),
    torch.arange(3),
]


@pytest.mark.parametrize('tensors', [TENSORS, TENSORS[::-1], TENSORS[2:3], TENSORS[4:5], []])
def test_one_buffer_holds_tensors_of_every_dtype(device, tensors):
    copies = _copied(tensors, torch.device(device))
    assert len(copies) == len(tensors)
    for copy, tensor in zip(copies, tensors, strict=True):
        assert copy.device.type == device
        assert copy.dtype == tensor.dtype
        assert torch.equal(copy.cpu(), tensor)


def test_a_copy_may_change_in_place_while_autograd_keeps_another(device):
    first, second = _copied([torch.ones(3), torch.ones(2)], torch.device(device))
    x = torch.ones(3, device=device, requires_grad=True)
    y = (x * first).sum()
    second.mul_(2)
    y.backward()
    assert x.grad.tolist() == [1, 1, 1]


def test_what_holds_tensors_is_made_anew(device):
    Pair = namedtuple('Pair', 'left right')
    instances = InstanceData(bboxes=torch.rand(2, 4), names=['a', 'b'])
    element = BaseDataElement(metainfo=dict(size=(3, 4)), inner=instances)
    data = dict(images=[torch.rand(3), torch.rand(2)], pair=Pair(torch.ones(1), 'x'), e=[element])
    found = to_device(data, torch.device(device))
    assert found['images'][1].device.type == device
    assert torch.equal(found['images'][1].cpu(), data['images'][1])
    assert isinstance(found['pair'], Pair)
    assert found['pair'].right == 'x'
    copied = found['e'][0]
    assert copied.metainfo == element.metainfo
    assert copied.inner.names == ['a', 'b']
    assert torch.equal(copied.inner.bboxes.cpu(), instances.bboxes)
    copied.set_metainfo(dict(size=(9, 9)))
    copied.set_data(dict(more=torch.zeros(1)))
    del copied.inner.names
    assert element.metainfo == dict(size=(3, 4))
    assert 'more' not in element
    assert instances.names == ['a', 'b']


def test_a_tensor_that_is_there_twice():
    tensor = torch.rand(2)
    doubled = map_tensors([tensor, (tensor,)], lambda x: 2 * x)
    assert torch.equal(doubled[0], 2 * tensor)
    assert torch.equal(doubled[1][0], 2 * tensor)
