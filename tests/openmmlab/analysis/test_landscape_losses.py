"""Losses that are the same for the same weights, whatever else draws."""

import random

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import nn

from kat_mm.analysis.landscape import grid_losses, principal_plane, set_parameters
from kat_mm.errors import ConfigError
from kat_mm.openmmlab.analysis.losses import BatchLosses, training_batches


class Samples(torch.utils.data.Dataset):
    """Sixteen samples, each drawn anew from all generators that augmentations may use."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        noise = [random.random(), np.random.rand(), torch.rand(()).item()]  # noqa: NPY002
        return {
            'inputs': torch.tensor([index / 16, *noise]),
            'data_samples': BaseDataElement(index=index),
        }


class Model(BaseModel):
    """Draws in its loss, writes into its samples, and has all that modes change."""

    def __init__(self, norm=True):
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6) if norm else nn.Identity()
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(6, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        assert not any('written' in sample for sample in data_samples)
        for sample in data_samples:
            sample.written = True
        y = self.last(self.drop(self.norm(self.first(torch.stack(list(inputs)))))).squeeze(1)
        weight = torch.rand(len(y)) + random.random() + np.random.rand()  # noqa: NPY002
        return {'loss_a': (weight * y.square()).mean(), 'loss_b': [y.abs().mean()], 'acc': y.mean()}


def config():
    return Config(
        dict(
            train_dataloader=dict(
                batch_size=4,
                num_workers=2,
                persistent_workers=True,
                prefetch_factor=2,
                dataset=Samples(),
                sampler=dict(type='DefaultSampler', shuffle=True),
                collate_fn=dict(type='pseudo_collate'),
            )
        )
    )


def batches(count=2):
    return training_batches(config(), count)


def test_batches_are_the_same_each_time():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = batches(3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    random.seed(7)
    second = batches(3)
    assert len(first) == 3
    for one, other in zip(first, second, strict=True):
        indices = [[sample.index for sample in b['data_samples']] for b in (one, other)]
        assert indices[0] == indices[1]
        for x, y in zip(one['inputs'], other['inputs'], strict=True):
            assert torch.equal(x, y)
    assert len(batches(99)) == 4  # no more than there are


def test_no_training_data():
    with pytest.raises(ConfigError, match='has no train_dataloader'):
        training_batches(Config({}), 1)


def test_losses_repeat_and_leave_no_trace():
    model = Model()
    loss = BatchLosses(model, batches())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(1)
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = loss()
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert (np.random.get_state()[1] == state[2]).all()  # noqa: NPY002
    torch.manual_seed(2)
    assert loss() == first
    assert loss.with_own_statistics() != first
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(module.training for module in model.modules())


def test_the_loss_is_the_mean_over_batches_with_their_statistics():
    model = Model()
    loss = BatchLosses(model, batches())
    x = torch.stack([torch.stack(list(b['inputs'])) for b in loss.batches])  # [batches, 4, 4]
    total = 0.0
    with torch.no_grad():
        h = model.first(x)
        mean, var = h.mean(1).mean(0), h.var(1).mean(0)  # plain means over the batches
        y = model.last((h - mean) / (var + model.norm.eps).sqrt())[..., 0]
        for each in y:
            torch.manual_seed(loss.SEED)
            random.seed(loss.SEED)
            np.random.seed(loss.SEED)  # noqa: NPY002
            weight = torch.rand(4) + random.random() + np.random.rand()  # noqa: NPY002
            total += ((weight * each.square()).mean() + each.abs().mean()).item() / 2
    assert loss() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize('norm', [False, True])
def test_the_middle_of_a_landscape_has_the_loss_of_the_last_checkpoint(norm):
    torch.manual_seed(0)
    model = Model(norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = BatchLosses(model, batches())
    checkpoints = []
    for _ in range(5):
        checkpoints.append({k: v.clone() for k, v in model.state_dict().items()})
        batch = loss.batches[0]
        losses = model(batch['inputs'], [BaseDataElement() for _ in range(4)], mode='loss')
        optimizer.zero_grad()
        model.parse_losses(losses)[0].backward()
        optimizer.step()
    model.load_state_dict(checkpoints[-1])
    last = loss()
    if not norm:
        assert last == loss.with_own_statistics()
    plane = principal_plane(checkpoints, [name for name, _ in model.named_parameters()])
    axes = plane.axes(3)
    losses = grid_losses(model, plane, axes, loss)
    middle = losses[(axes[0] == 0).nonzero().item(), (axes[1] == 0).nonzero().item()]
    assert middle.item() == pytest.approx(last, abs=1e-6)
    assert loss() == last
    set_parameters(model, plane.point(*plane.path[0].tolist()))
    assert loss() != last
