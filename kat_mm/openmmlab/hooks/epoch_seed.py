"""Random numbers that depend on the iteration alone, so that a resumed run repeats the first."""

import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import DATA_SAMPLERS, HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seeds every random number generator from (seed, iteration, rank), for loading and training.

    Checkpoints of mmengine hold no generator states: after `--resume` dropout, samplers and
    augmentations would draw other numbers than the uninterrupted run. With this hook both draw
    the same, whatever the number of loader workers: a batch seeds the process that loads it, an
    iteration the one that trains. Samplers begin again with the seed of the resumed run, and in a
    loop by iteration they pass over the batches of the iterations before, which none loads again.

    Transforms that keep images for later ones (mmdet's CachedMosaic and CachedMixUp) forget them
    as an epoch begins. In a loop by iteration a resumed run lacks them, and says so.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner) -> None:
        loop = runner.train_loop
        loader = loop.dataloader
        by_iteration = isinstance(loop, IterBasedTrainLoop)
        if not by_iteration and not isinstance(loop, EpochBasedTrainLoop):
            return
        if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
            return  # no indices that could carry a seed
        batches = _SeededBatches(_restarted(runner, loader), runner, endless=by_iteration)
        # The loader lets no one set these, since its workers may be running; they start anew.
        object.__setattr__(loader, 'sampler', batches.sampler)
        object.__setattr__(loader, 'batch_sampler', batches)
        loader._iterator = None
        if by_iteration:
            # The maintained fork skips on request, the release by asking for what it then drops.
            asked = 0 if hasattr(loop.dataloader_iterator, 'skip_iter') else runner.iter
            loop.dataloader_iterator = _ResumedBatches(loader, asked)
            if runner.iter and (names := {type(t).__name__ for t in _caching(loader.dataset)}):
                print_log(
                    f'{", ".join(sorted(names))} lack the images that they kept before: this run '
                    'differs a little from an uninterrupted one',
                    'current',
                    logging.WARNING,
                )

    def before_train_epoch(self, runner) -> None:
        loader = runner.train_loop.dataloader
        if caching := list(_caching(loader.dataset)):
            for transform in caching:
                transform.results_cache.clear()
            loader._iterator = None  # of persistent workers, which hold copies of them

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        _seed_all(_seed(runner.seed, runner.iter, runner.rank, loading=False))


def _seed(seed: int, iteration: int, rank: int, loading: bool) -> int:
    # Far apart for neighbouring seeds, iterations and ranks.
    return int(np.random.SeedSequence([seed, iteration, rank, loading]).generate_state(1)[0])


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, what augmentations draw from
    torch.manual_seed(seed)


@dataclass
class _SeededBatch:
    """The indices of a batch; whoever goes through them to load it is seeded before the first."""

    indices: list[int]
    seed: int

    def __iter__(self) -> Iterator[int]:
        _seed_all(self.seed)
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> int:
        return self.indices[i]


class _SeededBatches:
    """A batch sampler whose batches carry seeds made from the number of their iteration.

    Args:
        batches: the batch sampler that it stands for, and whose attributes it has.
        runner: tells seed, rank and the iteration that is next.
        endless: begins with the batch of that iteration, and goes through all data again and
            again, as a loop by iteration asks.
    """

    def __init__(self, batches: BatchSampler, runner, endless: bool):
        self.batches, self.runner, self.endless = batches, runner, endless

    def __getattr__(self, name: str):
        return getattr(self.batches, name)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[_SeededBatch]:
        first = self.runner.iter
        numbers = count(0 if self.endless else first)
        for epoch in count():
            if self.endless and hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(epoch)
            number = None
            for indices, number in zip(self.batches, numbers, strict=False):
                if number >= first:
                    seed = _seed(self.runner.seed, number, self.runner.rank, loading=True)
                    yield _SeededBatch(indices, seed)
            if number is None or not self.endless:
                return


class _ResumedBatches:
    """Batches for a loop by iteration, from a sampler that has passed over those before.

    Workers start with the first batch that is needed. The loop asks for `skipped` others first.
    """

    def __init__(self, loader: DataLoader, skipped: int):
        self.loader, self.skipped = loader, skipped
        self.iterator = None

    def __iter__(self) -> Iterator:
        return self

    def __next__(self):
        if self.skipped:
            self.skipped -= 1
            return None
        self.iterator = self.iterator or iter(self.loader)
        return next(self.iterator)

    def skip_iter(self, steps: int) -> None:
        """Does nothing, as there is nothing left to skip."""


def _restarted(runner, loader: DataLoader) -> BatchSampler:
    """Returns a new batch sampler like the loader's, which may have begun, with the run's seed."""
    config = runner._train_dataloader
    if not isinstance(config, dict) or not isinstance(config.get('sampler'), dict):
        return loader.batch_sampler
    differ = runner._randomness_cfg.get('diff_rank_seed', False)
    defaults = dict(dataset=loader.dataset, seed=None if differ else runner.seed)
    sampler: Sampler = DATA_SAMPLERS.build(config['sampler'], default_args=defaults)
    if config.get('batch_sampler') is None:
        return BatchSampler(sampler, loader.batch_size, loader.drop_last)
    defaults = dict(sampler=sampler, batch_size=config.get('batch_size'))
    return DATA_SAMPLERS.build(config['batch_sampler'], default_args=defaults)


def _caching(part: Dataset) -> Iterator:
    """Yields the transforms of a data set that keep images for those which come later."""
    if hasattr(part, 'results_cache'):
        yield part
    for name in ('dataset', 'datasets', 'pipeline', 'transforms'):
        inner = getattr(part, name, None)
        for each in inner if isinstance(inner, list | tuple) else [inner] if inner else []:
            yield from _caching(each)
