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


def weights_of(work_dir, step):
    path = next(work_dir.glob(f'*_{step}.pth'))
    return torch.load(path, weights_only=True)['state_dict']


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize(('by_epoch', 'part', 'whole'), [(True, 1, 3), (False, 5, 7)])
def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path, workers, by_epoch, part, whole):
    """Bit by bit; by iteration, resumed within the second pass through the data."""
    kind = dict(workers=workers, by_epoch=by_epoch)
    expected = losses_of(tmp_path / 'whole', length=whole, **kind)
    losses_of(tmp_path / 'parts', length=part, **kind)
    torch.rand(3)  # whatever else a process may have drawn
    resumed = losses_of(tmp_path / 'parts', length=whole, resume=True, **kind)
    assert list(resumed) == list(range(5 if by_epoch else 6, len(expected) + 1))
    assert resumed == {step: expected[step] for step in resumed}
    for name, weight in weights_of(tmp_path / 'whole', whole).items():
        assert torch.equal(weights_of(tmp_path / 'parts', whole)[name], weight), name


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


def test_the_number_of_workers_does_not_count(tmp_path):
    first, second = (
        losses_of(tmp_path / str(n), workers=n, by_epoch=False, length=3) for n in (0, 2)
    )
    assert first == second


class Loaded(Hook):
    """Keeps the indices that a loop by iteration loads, in this process."""

    def __init__(self):
        self.indices = []

    def before_train(self, runner):
        load = runner.train_dataloader.dataset.load

        def load_and_tell(index):
            self.indices.append(index)
            return load(index)

        runner.train_dataloader.dataset.load = load_and_tell


def indices_of(work_dir, **kwargs):
    loaded = Loaded()
    train(small_runner(work_dir, by_epoch=False, hooks=[EpochSeedHook(), loaded], **kwargs))
    return loaded.indices


@pytest.mark.parametrize('sampler', ['InfiniteSampler', 'DefaultSampler'])
def test_a_resumed_run_loads_no_batch_again(tmp_path, sampler):
    """Also with a sampler that ends, after whose end it goes on with another order."""
    expected = indices_of(tmp_path / 'whole', length=11, sampler=sampler)
    assert len(expected) == 2 * 11
    assert expected[:8] != expected[8:16]
    assert sorted(expected[:8]) == sorted(expected[8:16]) == list(range(8))
    assert indices_of(tmp_path / 'parts', length=6, sampler=sampler) == expected[: 2 * 6]
    again = indices_of(tmp_path / 'parts', length=11, sampler=sampler, resume=True)
    assert again == expected[2 * 6 :]


def test_a_run_without_a_seed_of_its_own_resumes_with_the_first_one(tmp_path):
    """The shuffle too, whose sampler is built before mmengine reads the seed."""
    first = losses_of(tmp_path / 'whole', length=3, seed=5)
    losses_of(tmp_path / 'parts', length=1, seed=5)
    resumed = losses_of(tmp_path / 'parts', length=3, seed=None, resume=True)
    assert resumed == {step: first[step] for step in resumed}


class Caching:
    """A transform that keeps images, as mmdet's CachedMosaic."""

    def __init__(self):
        self.results_cache = []


@pytest.mark.parametrize('workers', [0, 2])
def test_kept_images_are_forgotten_with_each_epoch(tmp_path, workers):
    sizes = []

    class Sizes(Hook):
        priority = 'LOW'

        def before_train_epoch(self, runner):
            [transform] = runner.train_dataloader.dataset.pipeline.transforms
            sizes.append(len(transform.results_cache))
            transform.results_cache.append('image')

    runner = small_runner(tmp_path, workers=workers, hooks=[EpochSeedHook(), Sizes()])
    runner.train_dataloader.dataset.pipeline.transforms = [Caching()]
    train(runner)
    assert sizes == [0, 0]
