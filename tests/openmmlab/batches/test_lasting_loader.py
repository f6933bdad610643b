"""Workers that go on from epoch to epoch load what those of torch's loader load."""

import os

import pytest
import torch
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmengine.dataset import DefaultSampler
from mmengine.hooks import DistSamplerSeedHook, Hook
from small_runner import RandomNumbers, small_runner
from torch.utils.data import DataLoader

from kat_mm.openmmlab import EpochSeedHook
from kat_mm.openmmlab.batches.lasting_loader import LastingLoader
from kat_mm.openmmlab.batches.seeded_batches import SeededBatches


class Scenes(RandomNumbers):
    """Upright and wide images, with values that a hook may scale."""

    scale = 1

    def get_data_info(self, index):
        return dict(width=1 + index % 3, height=2)

    def load(self, index):
        return {'inputs': self.scale * super().load(index)['inputs'], 'data_samples': os.getpid()}


class Seen(Hook):
    """Keeps the batches of every iteration, and who loaded them."""

    def __init__(self):
        self.batches, self.workers, self.ahead = {}, set(), []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.workers |= set(data_batch['data_samples'])
        key = runner.epoch, batch_idx, runner.iter
        self.batches[key] = torch.stack(data_batch['inputs'])

    def before_val(self, runner):
        batches = runner.train_dataloader.batch_sampler
        self.ahead.append(getattr(batches, 'drawn', runner.iter) - runner.iter)


def run(work_dir, *, hooks=(), loader=(), length=3, workers=2, resume=False, without=()):
    """Trains, and returns what was seen and the loader."""
    seen = Seen()
    runner = small_runner(
        work_dir,
        length=length,
        workers=workers,
        resume=resume,
        hooks=[EpochSeedHook(), seen, *hooks],
    )
    runner._hooks = [hook for hook in runner.hooks if not isinstance(hook, without)]
    runner._train_dataloader.update(dict(dataset=Scenes(), **dict(loader)))
    runner.train()
    runner.train_loop.dataloader._iterator = None  # ends the workers now
    return seen, runner.train_dataloader


def weights(work_dir, epoch):
    return torch.load(work_dir / f'epoch_{epoch}.pth', weights_only=True)['state_dict']


@pytest.fixture
def as_torch(monkeypatch):
    """Has runs keep torch's loader, as long as it is called."""

    def keep(do, *args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(
                'kat_mm.openmmlab.hooks.epoch_seed.make_lasting',
                lambda loader, batches, runner: SeededBatches(batches, runner),
            )
            seen, loader = do(*args, **kwargs)
        assert type(loader) is DataLoader
        return seen

    return keep


def assert_same(found, expected):
    assert list(found) == list(expected)
    for key, batch in expected.items():
        assert torch.equal(found[key], batch), key


BY_ASPECT = dict(batch_sampler=dict(type=AspectRatioBatchSampler), prefetch_factor=1)
LOADERS = [
    dict(),
    dict(prefetch_factor=5),  # beyond the next epoch
    dict(batch_size=3),  # whose last batch is smaller
    dict(batch_size=3, drop_last=True),
    dict(batch_size=8),  # an epoch of one batch
    dict(sampler=dict(type='DefaultSampler', shuffle=False)),
]


@pytest.mark.parametrize('loader', LOADERS, ids=str)
def test_batches_and_weights_are_those_of_torch(tmp_path, as_torch, loader):
    expected = as_torch(run, tmp_path / 'torch', loader=loader)
    seen, lasting = run(tmp_path / 'ours', loader=loader)
    assert type(lasting) is LastingLoader
    assert_same(seen.batches, expected.batches)
    assert len(seen.workers) == min(2, len(expected.batches))
    for epoch in (1, 2, 3):
        ours, theirs = (weights(tmp_path / name, epoch) for name in ('ours', 'torch'))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_they_are_those_of_a_single_process(tmp_path):
    expected, _ = run(tmp_path / 'alone', workers=0)
    seen, _ = run(tmp_path / 'ours')
    assert_same(seen.batches, expected.batches)
    orders = {tuple(v[:, 0].tolist()) for (epoch, i, _), v in seen.batches.items() if not i}
    assert len(orders) == 3  # epochs


@pytest.mark.parametrize('part', [1, 2])
def test_a_resumed_run_goes_on_with_the_same_batches(tmp_path, part):
    expected, _ = run(tmp_path / 'whole', length=4)
    run(tmp_path / 'parts', length=part)
    seen, _ = run(tmp_path / 'parts', length=4, resume=True)
    assert_same(seen.batches, {k: v for k, v in expected.batches.items() if k[0] >= part})
    ours, theirs = (weights(tmp_path / name, 4) for name in ('parts', 'whole'))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_batches_are_asked_for_while_an_epoch_ends(tmp_path):
    """As many as during an epoch, and none after the last epoch."""
    seen, _ = run(tmp_path, loader=dict(prefetch_factor=2))
    assert seen.ahead == [4, 4, 0]


def test_batches_by_aspect_ratio(tmp_path, as_torch):
    expected = as_torch(run, tmp_path / 'torch', loader=BY_ASPECT)
    seen, lasting = run(tmp_path / 'ours', loader=BY_ASPECT)
    assert type(lasting) is LastingLoader
    assert_same(seen.batches, expected.batches)


class Switch(Hook):
    """Changes the data before the second epoch and restarts the workers, as mm's hooks do."""

    def before_train_epoch(self, runner):
        if runner.epoch == 1:
            loader = runner.train_dataloader
            loader.dataset.scale = 2
            loader._DataLoader__initialized = False
            loader._iterator = None


class MorePasses(Hook):
    """Goes through some of the data at the end of each epoch, as for statistics of norms."""

    def __init__(self, length):
        self.length, self.values = length, []

    def after_train_epoch(self, runner):
        for _, batch in zip(range(self.length), runner.train_dataloader, strict=False):
            self.values.append(torch.stack(batch['inputs']))


class Stop(Hook):
    def after_train_epoch(self, runner):
        runner.train_loop.stop_training = runner.epoch == 1


# A part of a pass leaves its rest in mmdet's sampler where torch's loader goes through it.
@pytest.mark.parametrize(
    ('make_hook', 'loader'),
    [
        *((Switch, {}), (Switch, BY_ASPECT), (Stop, {})),
        *((lambda: MorePasses(2), {}), (lambda: MorePasses(9), {})),
        (lambda: MorePasses(9), BY_ASPECT),
    ],
)
def test_hooks_that_intervene(tmp_path, as_torch, make_hook, loader):
    theirs, ours = make_hook(), make_hook()
    expected = as_torch(run, tmp_path / 'torch', hooks=[theirs], loader=loader)
    seen, lasting = run(tmp_path / 'ours', hooks=[ours], loader=loader)
    assert type(lasting) is LastingLoader
    assert_same(seen.batches, expected.batches)
    for mine, other in zip(*(getattr(h, 'values', []) for h in (ours, theirs)), strict=True):
        assert torch.equal(mine, other)


class OwnSampler(DefaultSampler):
    """Of whose order nothing is known."""


@pytest.mark.parametrize(
    ('loader', 'without'),
    [
        (dict(persistent_workers=False), ()),
        (dict(sampler=dict(type=OwnSampler)), ()),
        ({}, DistSamplerSeedHook),  # which tells the sampler its epoch
    ],
)
def test_other_loaders_stay_as_they_are(tmp_path, as_torch, loader, without):
    expected = as_torch(run, tmp_path / 'torch', loader=loader, without=without)
    seen, kept = run(tmp_path / 'ours', loader=loader, without=without)
    assert type(kept) is DataLoader
    assert_same(seen.batches, expected.batches)
