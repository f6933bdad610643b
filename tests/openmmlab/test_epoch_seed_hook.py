"""A resumed run draws the random numbers of an uninterrupted one."""

import pytest
import torch
from mmengine.hooks import Hook
from small_runner import Losses, small_runner

from kat_mm.openmmlab import EpochSeedHook


def train(runner):
    runner.train()
    # Ends the workers now: the garbage collector would wait ten seconds for them.
    runner.train_loop.dataloader_iterator = runner.train_dataloader._iterator = None


def losses_of(work_dir, *, hook=None, **kwargs):
    losses = Losses()
    train(small_runner(work_dir, hooks=[losses, hook or EpochSeedHook()], **kwargs))
    return losses.values


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize(('by_epoch', 'part', 'whole'), [(True, 1, 3), (False, 4, 7)])
def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path, workers, by_epoch, part, whole):
    kind = dict(workers=workers, by_epoch=by_epoch)
    expected = losses_of(tmp_path / 'whole', length=whole, **kind)
    losses_of(tmp_path / 'parts', length=part, **kind)
    torch.rand(3)  # whatever else a process may have drawn
    resumed = losses_of(tmp_path / 'parts', length=whole, resume=True, **kind)
    assert list(resumed) == list(range(5, len(expected) + 1))
    assert resumed == {step: expected[step] for step in resumed}


def test_without_the_hook_it_does_not(tmp_path):
    """So the test above tests the hook."""
    nothing = Hook()
    expected = losses_of(tmp_path / 'whole', hook=nothing, length=3)
    losses_of(tmp_path / 'parts', hook=nothing, length=1)
    resumed = losses_of(tmp_path / 'parts', hook=nothing, length=3, resume=True)
    assert all(resumed[step] != expected[step] for step in resumed)


@pytest.mark.parametrize('workers', [0, 2])
def test_epochs_and_workers_draw_different_numbers(tmp_path, workers):
    class Batches(Hook):
        def __init__(self):
            self.draws = []

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            self.draws += [tuple(sample[1:].tolist()) for sample in data_batch['inputs']]

    batches = Batches()
    train(small_runner(tmp_path, length=3, workers=workers, hooks=[EpochSeedHook(), batches]))
    assert len(batches.draws) == 24
    for generator in zip(*batches.draws, strict=True):
        assert len(set(generator)) == 24


def test_the_seed_counts(tmp_path):
    first, second = (losses_of(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    assert all(first[step] != second[step] for step in first)


def test_another_worker_init_is_left_alone(tmp_path):
    runner = small_runner(tmp_path, hooks=[EpochSeedHook()])
    loader = runner.train_dataloader

    def own(worker):
        pass

    loader.worker_init_fn = own
    runner.train()
    assert runner.train_dataloader.worker_init_fn is own
