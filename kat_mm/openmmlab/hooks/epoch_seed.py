"""Random numbers that depend on the epoch alone, so that a resumed run repeats the first."""

import random
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from mmengine.dataset import worker_init_fn
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import DataLoader


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seeds every random number generator from (seed, epoch, rank) as a training epoch begins.

    Checkpoints of mmengine hold no generator states: after `--resume` dropout, samplers and
    augmentations would draw other numbers than the uninterrupted run. With this hook both draw
    the same, as training resumes at the start of an epoch. Loader workers start anew with each
    epoch, since running ones cannot be seeded.

    In a loop by iteration, every iteration counts as an epoch, from the loading of its batch on;
    its workers need no care, as mmengine has a resumed run load all the batches before again.
    """

    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner) -> None:
        loop = runner.train_loop
        if isinstance(loop, EpochBasedTrainLoop):
            seed = _seed_all(runner.seed, loop.epoch, runner.rank)
            _restart_workers(loop.dataloader, seed)
        elif isinstance(loop, IterBasedTrainLoop):
            batches = loop.dataloader_iterator
            loop.dataloader_iterator = _SeededBatches(batches, runner.seed, runner.rank)


def _seed_all(seed: int, epoch: int, rank: int) -> int:
    # Far apart for neighbouring seeds, epochs and ranks.
    seed = int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, what augmentations draw from
    torch.manual_seed(seed)
    return seed


def _restart_workers(loader: DataLoader, seed: int) -> None:
    # PyTorch keeps persistent workers in this field; without them it makes new ones anyway.
    loader._iterator = None
    init = loader.worker_init_fn
    if isinstance(init, partial) and init.func is worker_init_fn:
        # mmengine adds the number of the worker; stay within numpy's 32 bits.
        loader.worker_init_fn = partial(init, seed=seed % 2**31)


class _SeededBatches:
    """An iterator that seeds all generators from the number of a batch before it is loaded."""

    def __init__(self, batches: Iterator, seed: int, rank: int):
        self.batches, self.seed, self.rank = batches, seed, rank
        self.iteration = 0

    def __iter__(self) -> Iterator:
        return self

    def __next__(self):
        _seed_all(self.seed, self.iteration, self.rank)
        self.iteration += 1
        return next(self.batches)

    def skip_iter(self, steps: int) -> None:
        """Loads batches for nothing, as the fork of mmengine need not, for the workers' sake."""
        for _ in range(steps):
            next(self)
