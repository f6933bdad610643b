"""Batches of indices that carry the seeds of the random numbers which loading them draws."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler, DataLoader, Sampler


def make_seed(seed: int, iteration: int, rank: int, loading: bool) -> int:
    """Returns a seed that is far from those of neighbouring seeds, iterations and ranks."""
    return int(np.random.SeedSequence([seed, iteration, rank, loading]).generate_state(1)[0])


def seed_all(seed: int) -> None:
    """Seeds the generators of Python, NumPy and torch in this process."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, what augmentations draw from
    torch.manual_seed(seed)


@dataclass
class SeededBatch:
    """The indices of a batch; whoever goes through them to load it is seeded before the first."""

    indices: list[int]
    seed: int

    def __iter__(self) -> Iterator[int]:
        seed_all(self.seed)
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> int:
        return self.indices[i]


class SeededBatches:
    """A batch sampler whose batches carry seeds made from the number of their iteration.

    Args:
        batches: the batch sampler that it stands for, and whose attributes it has.
        runner: tells seed, rank and the iteration that is next.
    """

    def __init__(self, batches: BatchSampler, runner):
        self.batches, self.runner = batches, runner

    def __getattr__(self, name: str):
        return getattr(self.batches, name)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[SeededBatch]:
        for iteration, indices in enumerate(self.batches, self.runner.iter):
            yield self.seeded(indices, iteration)

    def seeded(self, indices: list[int], iteration: int) -> SeededBatch:
        """Returns the batch of an iteration."""
        return SeededBatch(
            indices, make_seed(self.runner.seed, iteration, self.runner.rank, loading=True)
        )


class EndlessBatches(SeededBatches):
    """Goes through all data again and again, as a loop by iteration asks.

    It begins with the batch of the iteration that is next.
    """

    def __iter__(self) -> Iterator[SeededBatch]:
        first = self.runner.iter
        iterations = count()
        for epoch in count():
            if hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(epoch)
            iteration = None
            for indices, iteration in zip(self.batches, iterations, strict=False):
                if iteration >= first:
                    yield self.seeded(indices, iteration)
            if iteration is None:
                return


class ResumedBatches:
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


def restarted(runner, loader: DataLoader) -> BatchSampler:
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
