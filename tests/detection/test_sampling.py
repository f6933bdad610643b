"""Random sampling, against mmdet's RandomSampler with the same permutations."""

import pytest
import torch
from mmdet.models.task_modules.assigners import AssignResult
from mmdet.models.task_modules.samplers import RandomSampler
from mmengine.structures import InstanceData

from kat_mm.detection import sample


class SamplerByKeys(RandomSampler):
    """mmdet's sampler, whose choice is that of the smallest keys."""

    def __init__(self, keys, **kwargs):
        super().__init__(**kwargs)
        self.keys = keys

    def random_choice(self, gallery, num):
        return gallery[self.keys[gallery].argsort()[:num]]


def expected(assigned, keys, **options):
    """Returns the indices of positive and of negative boxes of one image."""
    count = len(assigned)
    assigned = AssignResult(9, assigned, torch.zeros(count), torch.zeros_like(assigned))
    sampler = SamplerByKeys(keys, add_gt_as_proposals=False, **options)
    boxes = InstanceData(priors=torch.zeros(count, 4, device=keys.device))
    gt = InstanceData(bboxes=torch.zeros(9, 4, device=keys.device), labels=torch.zeros(9))
    result = sampler.sample(assigned, boxes, gt)
    return result.pos_inds, result.neg_inds


@pytest.mark.parametrize(
    'options',
    [
        dict(num=256, pos_fraction=0.5),
        dict(num=64, pos_fraction=0.25),
        dict(num=64, pos_fraction=0.25, neg_pos_ub=3),
        dict(num=64, pos_fraction=0.25, neg_pos_ub=1.5),
        dict(num=64, pos_fraction=0.0, neg_pos_ub=5),
        dict(num=64, pos_fraction=1.0),
    ],
)
@pytest.mark.parametrize('count', [1000, 100, 20])
def test_equals_mmdet(device, options, count):
    assigned = torch.randint(-1, 2, (6, count), device=device)
    assigned[1] = assigned[1].clamp(max=0)  # no positive box
    assigned[2] = assigned[2].clamp(min=1)  # all are
    assigned[3] = -1
    assigned[4, 3:] = assigned[4, 3:].clamp(max=0)  # few are
    assigned[assigned > 0] *= 3
    keys = torch.stack([torch.randperm(count) / count for _ in assigned]).to(device)
    indices, is_positive, is_sampled = sample(assigned, keys=keys, **options)
    assert indices.shape == is_positive.shape == is_sampled.shape == (6, options['num'])
    assert not indices[~is_sampled].any()
    assert not (is_positive & ~is_sampled).any()
    for i in range(6):
        positive, negative = expected(assigned[i], keys[i], **options)
        assert torch.equal(indices[i, is_positive[i]], positive)
        assert torch.equal(indices[i, is_sampled[i] & ~is_positive[i]], negative)
        taken = len(positive) + len(negative)
        assert is_positive[i, : len(positive)].all()
        assert is_sampled[i, :taken].all()


def test_draws_evenly(device):
    assigned = torch.zeros(400, 40, dtype=torch.int64, device=device)
    indices, *_ = sample(assigned, 10, 0.5)
    drawn = indices.flatten().bincount(minlength=40)
    assert drawn.sum() == 4000
    assert 60 < drawn.min() <= drawn.max() < 150
