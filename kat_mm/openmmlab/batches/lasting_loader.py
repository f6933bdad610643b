"""A data loader whose workers go on from one epoch to the next."""

from collections.abc import Iterator
from copy import deepcopy

from mmengine.dataset import DefaultSampler
from mmengine.hooks import DistSamplerSeedHook
from torch.utils.data import BatchSampler, DataLoader

from .seeded_batches import SeededBatch, SeededBatches

# Of the batches that these make, nothing but the sampler decides.
BATCH_SAMPLERS = ('BatchSampler', 'AspectRatioBatchSampler')


def make_lasting(loader: DataLoader, batches: BatchSampler, runner) -> SeededBatches:
    """Has the workers of a loader go on through epochs if that changes no batch.

    It doesn't if the order of an epoch follows from its number alone and workers persist. Other
    loaders stay as they are.

    Returns:
        what the loader shall have as its batch sampler.
    """
    ordered = (
        type(batches).__name__ in BATCH_SAMPLERS
        and type(batches.sampler) is DefaultSampler
        and any(type(hook) is DistSamplerSeedHook for hook in runner.hooks)
    )
    if not (ordered and type(loader) is DataLoader and loader.persistent_workers):
        return SeededBatches(batches, runner)
    loader.__class__ = LastingLoader  # it is built, and the loop and its hooks know it
    return LastingBatches(batches, runner)


class LastingBatches(SeededBatches):
    """The batches of the epoch that is next and of all after it, in one go.

    Attributes:
        ends: how many iterations the run has made at the ends of the epochs gone through.
        drawn: how many it has made when all batches that were asked for are used.
    """

    def __init__(self, batches: BatchSampler, runner):
        super().__init__(batches, runner)
        self.ends, self.drawn = set(), 0

    def __iter__(self) -> Iterator[SeededBatch]:
        self.ends, self.drawn = set(), self.runner.iter
        # Of its own, since the epoch that is loaded is ahead of the one that hooks know.
        dataset = self.batches.sampler.dataset
        batches = deepcopy(self.batches, {id(dataset): dataset})
        for epoch in range(self.runner.epoch, self.runner.max_epochs):
            batches.sampler.set_epoch(epoch)
            for indices in batches:
                self.drawn += 1
                yield self.seeded(indices, self.drawn - 1)
            self.ends.add(self.drawn)


class LastingLoader(DataLoader):
    """Loads the first batches of an epoch while the last of that before are used, or it validates.

    torch's own loader asks its workers for nothing beyond an epoch, so that each begins with a
    wait. Where an epoch isn't the one that was expected, or a hook has taken the workers away to
    change the data, what was loaded ahead is dropped and the epoch begins as it does there.
    """

    _expected = None  # (epoch, iterations made) of the batch that comes next

    def __iter__(self) -> Iterator:
        batches: LastingBatches = self.batch_sampler
        epoch, iteration = batches.runner.epoch, batches.runner.iter
        is_ahead = self._expected == (epoch, iteration) and batches.drawn > iteration
        if self._iterator is None or not is_ahead:
            super().__iter__()
        self._expected = None
        return self._epoch(epoch, iteration)

    def _epoch(self, epoch: int, first: int) -> Iterator:
        for iteration, data in enumerate(self._iterator, first + 1):
            yield data
            # With a batch, one more was asked for: an end that is reached is known.
            if iteration in self.batch_sampler.ends:
                self._expected = epoch + 1, iteration
                return
