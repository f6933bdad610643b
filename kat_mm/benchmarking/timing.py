"""Times of calls that take turns, their spreads, and what a step takes of a GPU."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

LONGEST_BATCH = 200  # calls; a GPU queues about 1000 launches, and a call may be several
CYCLES_PER_MS = 2e6  # at 2 GHz; a slower clock makes it wait longer
TRIAL = 10  # calls
PROFILED = 3  # steps


@dataclass(frozen=True)
class Spread:
    """The quartiles of repeated measurements."""

    q1: float
    median: float
    q3: float


def spread(values: Sequence[float]) -> Spread:
    """Computes the quartiles; of a single value all three are that value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    return Spread(*statistics.quantiles(values, n=4, method='inclusive'))


def host_ms(call: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Times `repeats` calls by the host's clock, between two synchronisations: ms of one call."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize(device)
    return 1e3 * (time.perf_counter() - start) / repeats


def device_ms(call: Callable[[], object], repeats: int, delay: float) -> float:
    """Times `repeats` calls by the GPU's clock: ms of one call.

    The GPU first waits for `delay` ms. If that is how long the host takes to queue the calls, then
    they run back to back, and the time is that of the kernels and not of their launches.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _occupy(delay)
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats


def _occupy(ms: float) -> None:
    """Has the GPU do nothing for a while, in its queue of work.

    Only a private function of torch can; its tests and its own benchmarks call it too. Work that
    takes as long, a product of matrices, would heat the GPU and fill its caches.
    """
    torch.cuda._sleep(int(ms * CYCLES_PER_MS))


def time_in_turns(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    repeats: int = 1,
    batch_ms: float | None = None,
    on_round: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Times calls that take turns, so that a change of the machine's speed meets all of them.

    Each round times a batch of each call, and the first of a round is the second of the one
    before. The calls must be warm.

    Args:
        calls: what to time, by name.
        rounds: how many times each has its turn.
        device: where the calls run.
        repeats: calls in a batch, which is timed by the host's clock, launches included.
        batch_ms: if given, batches last about that long, at most 200 calls, and on a GPU its own
            clock times them without the launches; see `device_ms`.
        on_round: called after each round, to show progress.

    Returns:
        ms of one call for each round, by name.
    """
    batches = {
        name: _batch(call, device, batch_ms)
        if batch_ms
        else partial(host_ms, call, device, repeats)
        for name, call in calls.items()
    }
    times = {name: [] for name in calls}
    names = list(calls)
    for _ in range(rounds):
        for name in names:
            times[name].append(batches[name]())
        names.append(names.pop(0))
        on_round()
    return times


def _batch(call: Callable[[], object], device: torch.device, ms: float) -> Callable[[], float]:
    """Returns what times a batch of calls that lasts about `ms`."""
    if device.type != 'cuda':
        return partial(host_ms, call, device, _how_many(ms, host_ms(call, device)))
    synchronize(device)
    start = time.perf_counter()
    for _ in range(TRIAL):
        call()
    queueing = 1.5 * 1e3 * (time.perf_counter() - start) / TRIAL  # of one call, with a margin
    synchronize(device)
    repeats = _how_many(ms, device_ms(call, TRIAL, TRIAL * queueing))
    return partial(device_ms, call, repeats, repeats * queueing)


def gpu_usage(step: Callable[[], object], owned_bytes: int = 0) -> dict[str, float]:
    """Measures what a step of a warm model takes of the GPU, whatever else is on it.

    Args:
        step: makes one step.
        owned_bytes: what the model holds between its steps: weights, optimizer states.

    Returns:
        'kernel_ms': the time that kernels and copies of one step run for, in ms. Where it is less
        than the time of the step, the GPU waits for the host.
        'peak_mib': the most that the model and a step of it allocate, in MiB.
    """
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    peak = owned_bytes + torch.cuda.max_memory_allocated() - held
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(PROFILED):
            step()
        torch.cuda.synchronize()
    total_us = sum(event.device_time_total for event in profiled.key_averages())
    return {'kernel_ms': total_us / 1e3 / PROFILED, 'peak_mib': peak / 2**20}


def owned_bytes(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> int:
    """Returns how many bytes weights, buffers and optimizer states have."""
    tensors = [*model.parameters(), *model.buffers()]
    for state in optimizer.state.values() if optimizer else ():
        tensors += [value for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.nbytes for tensor in tensors)


def _how_many(ms: float, ms_each: float) -> int:
    return min(max(math.ceil(ms / max(ms_each, 1e-6)), 1), LONGEST_BATCH)


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all its work."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Shows a progress bar on stderr, if that is a terminal; yields what moves it by one."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total)
        yield partial(bar.advance, task)
