"""Random numbers that depend on the iteration alone, so that a resumed run repeats the first."""

import logging
from collections.abc import Iterator

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import Dataset, IterableDataset

from ..batches.lasting_loader import make_lasting
from ..batches.seeded_batches import (
    EndlessBatches,
    ResumedBatches,
    SeededBatches,
    make_seed,
    restarted,
    seed_all,
)


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seeds every random number generator from (seed, iteration, rank), for loading and training.

    Checkpoints of mmengine hold no generator states: after `--resume` dropout, samplers and
    augmentations would draw other numbers than the uninterrupted run. With this hook both draw
    the same, whatever the number of loader workers: a batch seeds the process that loads it, an
    iteration the one that trains. Samplers begin again with the seed of the resumed run, and in a
    loop by iteration they pass over the batches of the iterations before, which none loads again.

    In a loop by epoch, persistent workers load the first batches of the next epoch while the last
    of this one train and while it validates, if the sampler is mmengine's DefaultSampler: the same
    batches, without a wait at the start of each epoch.

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
        batches = restarted(runner, loader)
        if by_iteration:
            batches = EndlessBatches(batches, runner)
        elif any(_caching(loader.dataset)):  # begin each epoch anew
            batches = SeededBatches(batches, runner)
        else:
            batches = make_lasting(loader, batches, runner)
        # The loader lets no one set these, since its workers may be running; they start anew.
        object.__setattr__(loader, 'sampler', batches.sampler)
        object.__setattr__(loader, 'batch_sampler', batches)
        loader._iterator = None
        if by_iteration:
            # The maintained fork skips on request, the release by asking for what it then drops.
            asked = 0 if hasattr(loop.dataloader_iterator, 'skip_iter') else runner.iter
            loop.dataloader_iterator = ResumedBatches(loader, asked)
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
        seed_all(make_seed(runner.seed, runner.iter, runner.rank, loading=False))


def _caching(part: Dataset) -> Iterator:
    """Yields the transforms of a data set that keep images for those which come later."""
    if hasattr(part, 'results_cache'):
        yield part
    for name in ('dataset', 'datasets', 'pipeline', 'transforms'):
        inner = getattr(part, name, None)
        for each in inner if isinstance(inner, list | tuple) else [inner] if inner else []:
            yield from _caching(each)
