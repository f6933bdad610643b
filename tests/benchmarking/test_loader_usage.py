"""What a data loader costs the steps that it feeds."""

import time

import torch
from torch.utils.data import DataLoader, Dataset

from kat_mm.benchmarking.loading import loader_usage

CPU = torch.device('cpu')


class Numbers(Dataset):
    """Numbers, each loaded in a given time by a given clock."""

    def __init__(self, count, load=lambda: None):
        self.count, self.load = count, load

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.load()
        return index


class Clock:
    """A clock that moves where it is told to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(time, 'perf_counter', lambda: self.now)

    def spend(self, seconds):
        self.now += seconds


def test_waiting_is_the_loaders_share(monkeypatch):
    clock = Clock(monkeypatch)
    loader = DataLoader(Numbers(5, lambda: clock.spend(0.01)), batch_size=2, num_workers=0)
    usage = loader_usage(loader, lambda batch: clock.spend(0.06), 6, CPU)
    # Of the batches of 2, 2 and 1, all six steps but one of a pass have two numbers to load.
    assert abs(usage['loader_ms'] - (60 + 100 / 6)) < 1e-6
    assert abs(usage['waiting'] - 0.1 / 0.46) < 1e-6


def test_batches_that_are_ready_come_first():
    seen = []
    loader = DataLoader(Numbers(3), num_workers=1, prefetch_factor=2)
    usage = loader_usage(loader, lambda batch: seen.append(batch.item()), 4, CPU)
    assert seen == [0, 1, 2, 0, 1, 2, 0]
    assert 0 <= usage['waiting'] <= 1
