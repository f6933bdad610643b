"""What the benchmark tools share: timing by turns, spreads, the origin of figures, CSV files."""

import argparse
import csv
import math
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ..errors import ConfigError, DataError

ORIGIN = ('date', 'commit', 'device', 'torch')  # the columns that `origin` fills
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
    torch.cuda._sleep(int(delay * CYCLES_PER_MS))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats


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


def add_step_ratios(figures: Mapping[str, dict], base: str, prefix: str) -> None:
    """Puts the ratios of one subject, `base`, to each into the figures of their steps."""
    for key, name in (('median_ms', 'ms'), ('kernel_ms', 'kernel'), ('peak_mib', 'mib')):
        for figure in figures.values():
            if key in figure:
                figure[f'{prefix}_{name}_ratio'] = figures[base][key] / figure[key]


def step_table(
    title: str, rows: Iterable[tuple[str, dict]], prefix: str, subject: str, ratio: str, digits: int
) -> Table:
    """Returns the table of steps with their ratios, a row for each, headed `subject`."""
    table = Table(title=title, title_justify='left')
    table.add_column(subject)
    for column in ('ms', 'quartiles', ratio, 'kernels ms', ratio, 'peak MiB', ratio):
        table.add_column(column, justify='right')
    for name, figure in rows:
        cells = [
            format(figure[key], f'.{places}f') if key in figure else ''
            for key, places in (
                *(('median_ms', digits), (f'{prefix}_ms_ratio', 3)),
                *(('kernel_ms', digits), (f'{prefix}_kernel_ratio', 3)),
                *(('peak_mib', 0), (f'{prefix}_mib_ratio', 3)),
            )
        ]
        cells.insert(1, f'{figure["q1_ms"]:.{digits}f} - {figure["q3_ms"]:.{digits}f}')
        table.add_row(name, *cells)
    return table


def _how_many(ms: float, ms_each: float) -> int:
    return min(max(math.ceil(ms / max(ms_each, 1e-6)), 1), LONGEST_BATCH)


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all its work."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def positive(text: str) -> int:
    """Parses an option that counts something."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f'must be a whole number from 1 on, got {text!r}')
    return int(text)


def choose_device(name: str | None) -> torch.device:
    """Returns the device of a --device option; without one a GPU if there is any.

    Raises:
        ConfigError: for a device that is unknown or not there.
    """
    if name is None:
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f'--device {name}: unknown; use cuda or cpu') from error
    if device.type not in ('cuda', 'cpu'):
        raise ConfigError(f'--device {name}: benchmarks run on cuda or cpu')
    if device.type == 'cuda':
        if (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                f'--device {name}: torch finds {torch.cuda.device_count()} GPUs; use --device cpu'
            )
        torch.cuda.set_device(0 if device.index is None else device.index)
    return device


def device_name(device: torch.device) -> str:
    """Returns the GPU's name, or 'CPU' and its number of threads."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    return f'CPU, threads: {torch.get_num_threads()}'


def commit() -> str:
    """Returns the short hash of kat_mm's commit, with + for changes in tracked files.

    Where kat_mm is not in a git checkout, such as in a copy on another machine, it is what
    KAT_MM_COMMIT in the environment says, or 'unknown'.
    """

    def git(*arguments) -> str:
        command = ['git', '--no-optional-locks', *arguments]
        folder = Path(__file__).resolve().parent
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changes = git('status', '--porcelain', '--untracked-files=no')
        return git('rev-parse', '--short', 'HEAD') + ('+' if changes else '')
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get('KAT_MM_COMMIT', 'unknown')


def origin(device: torch.device) -> dict[str, str]:
    """Returns the columns `ORIGIN`: when, from what code and on what a figure was measured."""
    now = datetime.now(timezone.utc).isoformat(timespec='seconds')
    values = (now, commit(), device_name(device), str(torch.__version__))
    return dict(zip(ORIGIN, values, strict=True))


def check_csv(path: str | Path, columns: Sequence[str]) -> None:
    """Checks that rows of these columns can be appended, which is worth knowing before measuring.

    Raises:
        DataError: if the file is no such CSV file or cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open('a+', newline='') as file:
            file.seek(0)
            header = next(csv.reader(file), None)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or 'it is no text'
        raise DataError(f'--csv {path}: cannot be appended to ({reason}); name a file') from error
    if header is not None and header != list(columns):
        raise DataError(
            f'--csv {path}: has the columns {",".join(header)}, the new rows {",".join(columns)}; '
            'choose another file or move this one away'
        )


def append_csv(path: str | Path, columns: Sequence[str], rows: Sequence[Mapping]) -> None:
    """Appends rows to a CSV file, below a header if it is new; floats get 6 digits."""
    check_csv(path, columns)
    is_new = not Path(path).stat().st_size
    with Path(path).open('a', newline='') as file:
        writer = csv.DictWriter(file, columns, restval='', lineterminator='\n')
        if is_new:
            writer.writeheader()
        for row in rows:
            values = {k: f'{v:.6g}' if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow(values)


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Shows a progress bar on stderr, if that is a terminal; yields what moves it by one."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total)
        yield partial(bar.advance, task)
