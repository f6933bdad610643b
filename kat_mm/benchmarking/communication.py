"""Which share of their time steps of training communicate with other processes."""

from collections.abc import Callable, Iterable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from .timing import synchronize

PROFILED = 5  # steps
NCCL_KERNELS = ('ncclDevKernel', 'ncclKernel')  # as they are named today, and were before

Interval = tuple[float, float]


def communication_share(
    step: Callable[[], object], device: torch.device, steps: int = PROFILED
) -> float:
    """Measures the share of the time of warm steps that goes to communication, from 0 to 1.

    On a GPU, that is the time in which kernels of NCCL run and nothing else does, by its own clock;
    they run too while they wait for a slower process. On a CPU, it is the time in which a
    collective of gloo is under way, whatever else the process does meanwhile. All processes must
    make these steps together.
    """
    on_gpu = device.type == 'cuda'
    synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as run:
        for _ in range(steps):
            step()
        synchronize(device)
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events = [
        event
        for event in run.events()
        if event.device_type == kind and not (on_gpu and event.is_user_annotation)
    ]
    if not events:
        return 0.0
    prefixes = NCCL_KERNELS if on_gpu else ('gloo:',)
    collectives, others = [], []
    for event in events:
        interval = event.time_range.start, event.time_range.end
        (collectives if event.name.startswith(prefixes) else others).append(interval)
    start, end = min(e.time_range.start for e in events), max(e.time_range.end for e in events)
    return length_outside(collectives, others if on_gpu else ()) / (end - start)


def length_outside(intervals: Iterable[Interval], others: Iterable[Interval] = ()) -> float:
    """Returns the length of the union of intervals (start, end) less that of others."""
    covered = [*others]
    return _length_of_union([*intervals, *covered]) - _length_of_union(covered)


def _length_of_union(intervals: Iterable[Interval]) -> float:
    length, reached = 0.0, float('-inf')
    for start, end in sorted(intervals):
        length += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return length
