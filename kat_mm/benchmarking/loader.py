"""What a data loader costs the steps that it feeds."""

import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch.utils.data import DataLoader

from .timing import synchronize


def loader_usage(
    loader: DataLoader, step: Callable[[object], object], steps: int, device: torch.device
) -> dict[str, float]:
    """Measures steps on the batches of a loader, as training makes them one after the other.

    The batches that workers have ready at first are used up before: a loader that cannot keep up
    shows it only then. After its last batch the loader begins again, and what that takes counts.

    Args:
        loader: what training takes its batches from.
        step: makes one step with a batch.
        steps: how many to measure.
        device: where the steps run.

    Returns:
        'loader_ms': wall-clock time of a step, loading included, in ms.
        'waiting': the part of it that the host waits for the loader, from 0 to 1.
    """
    batches = TimedBatches(loader)
    for _ in range(ready_batches(loader) + 1):
        step(next(batches))
    synchronize(device)
    batches.waited = 0.0
    start = time.perf_counter()
    for _ in range(steps):
        step(next(batches))
    synchronize(device)
    elapsed = time.perf_counter() - start
    return {'loader_ms': 1e3 * elapsed / steps, 'waiting': batches.waited / elapsed}


class TimedBatches:
    """The batches of a loader, which begins again after its last.

    Attributes:
        waited: seconds for which those who asked have waited.
    """

    def __init__(self, loader: Iterable):
        self._batches = _endless(loader)
        self.waited = 0.0

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> object:
        asked = time.perf_counter()
        batch = next(self._batches)
        self.waited += time.perf_counter() - asked
        return batch


def ready_batches(loader: DataLoader) -> int:
    """Returns how many batches the workers of a loader make ahead."""
    return loader.num_workers * (loader.prefetch_factor or 0)


def _endless(loader: Iterable) -> Iterator:
    while True:
        yield from loader
