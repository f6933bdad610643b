"""Batches sent in two pieces are those that mmengine's pseudo_collate sends."""

import pickle
import warnings

import pytest
import torch
from equal_batches import assert_equal
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.dataset import pseudo_collate
from mmengine.registry import FUNCTIONS
from mmengine.structures import InstanceData
from torch.utils.data import DataLoader, Dataset

from kat_mm.openmmlab.batches.collating import LARGE, CompactBatch, compact_collate
from kat_mm.openmmlab.batches.packed_masks import PackedInstanceMasks

SMALL = {
    'numbers': torch.arange(6).view(2, 3),
    'scalar': torch.tensor(2.5),
    'nothing': torch.zeros(0, 4),
    'flags': torch.tensor([True, False]),
    'transposed': torch.rand(3, 5).mT,
    'half': torch.rand(3).bfloat16(),
    'learned': torch.rand(2, requires_grad=True),
}


class Samples(Dataset):
    """Samples as a detector's pipeline gives them, images of unlike sizes."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        size = 500 + index, 700 - index
        masks = torch.zeros(2, *size)
        masks[0, 3:9, 5:80] = masks[1, :, 7] = 1
        instances = InstanceData(
            bboxes=HorizontalBoxes(torch.rand(2, 4).fill_(index)),
            labels=torch.tensor([index, 3]),
            masks=PackedInstanceMasks.pack(BitmapMasks(masks.byte().numpy(), *size)),
        )
        image = torch.arange(3 * size[0] * size[1]).view(3, *size).byte()
        meta = dict(img_id=index, img_shape=size)
        sample = DetDataSample(metainfo=meta, gt_instances=instances)
        return dict(inputs=image, data_samples=sample, more=dict(SMALL, name='x'))


def load(collate_fn):
    loader = DataLoader(Samples(), batch_size=2, num_workers=1, collate_fn=collate_fn)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        return list(loader)


def test_workers_send_what_they_sent():
    found, expected = (load(collate) for collate in (compact_collate, pseudo_collate))
    assert_equal(found, expected)
    image, other = found[0]['inputs']
    assert image.nbytes >= LARGE
    assert image.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    found[0]['data_samples'][0].gt_instances.labels += 1  # what arrives can be written to


def test_without_workers_nothing_changes():
    samples = [Samples()[i] for i in range(2)]
    assert type(compact_collate(samples)) is dict
    assert FUNCTIONS.get('compact_collate') is compact_collate


@pytest.mark.parametrize('batch', [dict(a=torch.zeros(LARGE)), dict(b=1), dict(SMALL), {}])
def test_batches_come_back_as_dicts(batch):
    assert_equal(pickle.loads(pickle.dumps(CompactBatch(batch))), batch)
