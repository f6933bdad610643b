"""Runs a function in several processes of this machine that know each other."""

import os
import queue
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import distributed, multiprocessing
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from ..errors import UserError


class RankError(UserError, RuntimeError):
    """One of several processes failed."""


@dataclass(frozen=True, order=True)
class _Failure:
    """What a rank failed of; the first in time is the cause, since others wait for that rank."""

    when: float
    rank: int
    message: str
    traceback: str = ''


def run_processes(
    work: Callable[[int, int], object], count: int, name: str, start_method: str = 'spawn'
) -> list:
    """Runs `work(rank, count)` in `count` processes at once.

    RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT tell them what joins them to a process
    group, as torchrun does. If one fails, the others are ended.

    Args:
        work: a function that can be pickled, as can what it returns.
        count: the number of processes.
        name: of the run, for errors.
        start_method: 'spawn', or 'fork' which starts sooner, for processes that use no GPU and a
            caller that has not computed in threads.

    Returns:
        What each rank's call returned.

    Raises:
        RankError: names the run, the rank that failed first and the last line of its error. The
            whole of it goes to stderr if the user cannot mend it.
    """
    context = multiprocessing.get_context(start_method)
    results = context.Queue()
    arguments = (work, count, _free_port(), results)
    processes = multiprocessing.start_processes(
        _run, arguments, count, join=False, start_method=start_method
    )
    found, failures = {}, []
    try:
        ended = False
        while not ended:
            # Of the queue first: a process that has put much into it ends when that is read.
            _drain(results, found, failures)
            ended = processes.join(timeout=0.05)
    except (ProcessRaisedException, ProcessExitedException) as error:
        _drain(results, found, failures)
        first = _killed(processes.processes) or min(failures, default=None)
        if not first:
            first = _Failure(0, error.error_index, str(error).strip().splitlines()[-1])
        print(first.traceback, end='', file=sys.stderr)
        raise RankError(f'{name}, rank {first.rank}: {first.message}') from error
    finally:
        for process in processes.processes:  # an interrupt leaves them
            if process.is_alive():
                process.terminate()
    _drain(results, found, failures)
    return [found[rank] for rank in range(count)]


def _run(rank: int, work: Callable, count: int, port: int, results) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
    )
    try:
        results.put((rank, work(rank, count), None))
    except BaseException as error:
        results.put((rank, None, _Failure(time.time(), rank, *_told(error))))
        results.close()
        results.join_thread()
        raise
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _told(error: BaseException) -> tuple[str, str]:
    """Returns the last line of an error, and its traceback if the user cannot mend it."""
    message = (str(error).strip().splitlines() or [''])[-1]
    if isinstance(error, UserError):
        return message, ''
    return f'{type(error).__name__}: {message}', traceback.format_exc()


def _killed(processes: Sequence) -> _Failure | None:
    """Returns which process was killed or crashed, which those who lost it cannot know."""
    for rank, process in enumerate(processes):
        if process.exitcode in (-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS):
            return _Failure(0, rank, f'ended by {signal.Signals(-process.exitcode).name}')
    return None


def _drain(results, found: dict, failures: list) -> None:
    """Takes what processes have put into their queue."""
    while True:
        try:
            rank, value, failure = results.get(timeout=0.01)
        except queue.Empty:
            return
        if failure:
            failures.append(failure)
        else:
            found[rank] = value


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]
