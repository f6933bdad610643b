"""The loss with class weights is mmseg's, and finite where pixels are ignored."""

import pytest
import torch
from mmseg.models.losses import CrossEntropyLoss

import kat_mm.openmmlab  # noqa: F401
from kat_mm.openmmlab.segmentation.losses import WeightedCrossEntropyLoss

WEIGHTS = [0.2, 1.0, 3.0]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 4, 5, generator=generator)
    return scores.requires_grad_(), torch.randint(3, (2, 4, 5), generator=generator)


@pytest.mark.parametrize('settings', [{}, {'reduction': 'sum'}, {'avg_non_ignore': True}])
@pytest.mark.parametrize('class_weight', [WEIGHTS, None])
def test_without_ignored_pixels_it_is_that_of_mmseg(batch, settings, class_weight):
    settings = {'class_weight': class_weight, 'loss_weight': 0.4, **settings}
    ours = WeightedCrossEntropyLoss(**settings)(*batch, ignore_index=255)
    assert torch.equal(ours, CrossEntropyLoss(**settings)(*batch, ignore_index=255))


def test_with_ignored_pixels_it_is_that_of_torch(batch):
    scores, labels = batch
    labels[0, :3] = 255
    ours = WeightedCrossEntropyLoss(class_weight=WEIGHTS)(scores, labels, ignore_index=255)
    expected = torch.nn.functional.cross_entropy(
        scores, labels, torch.tensor(WEIGHTS), ignore_index=255
    )
    torch.testing.assert_close(ours, expected)


def test_all_pixels_ignored(batch):
    scores, labels = batch
    loss = WeightedCrossEntropyLoss(class_weight=WEIGHTS)(
        scores, torch.full_like(labels, 255), ignore_index=255
    )
    loss.backward()
    assert loss == 0
    assert not scores.grad.any()
