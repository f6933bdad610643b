"""Many trainings at a time, each a process of its own, on the GPUs that there are."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ..rows import origin
from .logs import LOG, last_lines
from .runs import Run, held

ROOT = Path(__file__).parents[3]  # where trainings find this kat_mm
PATIENCE = 10  # seconds that a process has to end when it is told to
# A group of its own ends a run with its loader workers, and leaves it to whoever ends the session.
OWN_GROUP = {'process_group': 0} if sys.version_info >= (3, 11) else {'preexec_fn': os.setpgrp}


@dataclass
class _Job:
    run: Run
    process: subprocess.Popen
    place: int
    start: float
    resumes: bool


class Pool:
    """Trains runs, so many at a time.

    Each has its share of the cores as OMP_NUM_THREADS, unless the environment sets that.

    Args:
        command: what trains, to which a config and options are added.
        jobs: how many processes at a time, spread evenly over the GPUs.
        gpus: their names as of CUDA_VISIBLE_DEVICES; none for the CPU.
        report: is called when a run has ended, with its result, or None and the reason in lines.

    Attributes:
        running: how many processes there are.
    """

    def __init__(
        self,
        command: Sequence[str],
        jobs: int,
        gpus: Sequence[str],
        report: Callable[[Run, dict | None, list[str]], None],
    ):
        self.command, self.jobs, self.gpus, self.report = [*command], jobs, [*gpus], report
        self.threads = int(os.environ.get('OMP_NUM_THREADS') or max(_cores() // jobs, 1))
        self._running: dict[Future, _Job] = {}
        self._failed: set[Path] = set()

    @property
    def running(self) -> int:
        return len(self._running)

    def train(self, runs: Iterable[Run], seconds: float | None = None) -> None:
        """Trains runs, those that others start from before these.

        A run that was interrupted goes on from its last checkpoint. One that fails stops no other
        but those that start from it. However this ends, no process is left.

        Args:
            runs: those to train.
            seconds: after which all that still runs is ended, to go on another time.
        """
        end = None if seconds is None else time.monotonic() + seconds
        waiting, places = [*runs], [*range(self.jobs)]
        with ThreadPoolExecutor(self.jobs) as threads:
            try:
                while True:
                    self._fill(waiting, places, threads)
                    left = None if end is None else max(end - time.monotonic(), 0)
                    ended, _ = wait(self._running, left, FIRST_COMPLETED)
                    if not ended:  # nothing is left, or no time
                        return
                    for future in ended:
                        job = self._running.pop(future)
                        places.append(job.place)
                        if self._end(job):
                            waiting.insert(0, job.run)
            finally:
                self._kill()

    def _fill(self, waiting: list[Run], places: list[int], threads: ThreadPoolExecutor) -> None:
        """Starts as many of the waiting runs as there are places and parents for."""
        while True:
            self._drop_orphans(waiting)
            if not places or not (run := _next(waiting)):
                return
            if job := self._start(run, places[0]):
                places.pop(0)
                self._running[threads.submit(job.process.wait)] = job

    def _start(self, run: Run, place: int) -> _Job | None:
        """Starts the process of a run; None if another command is training it."""
        gpu = self.gpus[place % len(self.gpus)] if self.gpus else ''
        with held(run.folder) as descriptor:
            if descriptor is None:
                self._fail(run, [f'another process is training it in {run.folder}'])
                return None
            command = [*self.command, str(run.task.config), '--work-dir', str(run.folder)]
            command += ['--resume', '--cfg-options', *run.settings()]
            resumes = (run.folder / 'last_checkpoint').exists()
            with (run.folder / LOG).open('ab') as log:
                process = subprocess.Popen(
                    command,
                    env=environment(OMP_NUM_THREADS=str(self.threads), CUDA_VISIBLE_DEVICES=gpu),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(descriptor,),
                    **OWN_GROUP,
                )
        return _Job(run, process, place, time.monotonic(), resumes)

    def _end(self, job: _Job) -> bool:
        """Keeps what came out of a run whose process ended; tells whether it must start again."""
        _signal(job, signal.SIGKILL)  # of loader workers that outlive it
        device = (
            torch.device('cuda', job.place % len(self.gpus)) if self.gpus else torch.device('cpu')
        )
        facts = dict(origin(device))
        if not self.gpus:
            facts['device'] = f'CPU, threads: {self.threads}'
        facts['seconds'] = time.monotonic() - job.start
        facts['beside'] = -(-self.jobs // max(len(self.gpus), 1)) - 1
        status = job.process.returncode
        result = job.run.finish(status, facts)
        if result is not None:
            self.report(job.run, result, [])
        elif status == 0 and job.resumes:
            # It was interrupted between its last checkpoint and its validation.
            job.run.start_anew()
            return True
        else:
            reason = f'exit status {status}' if status else 'its log has no scores of the last step'
            self._fail(
                job.run, [*last_lines(job.run.folder), f'({reason}; {job.run.folder / LOG})']
            )
        return False

    def _fail(self, run: Run, reason: list[str]) -> None:
        self._failed.add(run.folder)
        self.report(run, None, reason)

    def _drop_orphans(self, waiting: list[Run]) -> None:
        """Lets the runs fail that start from one that failed or diverged."""
        while orphans := [run for run in waiting if run.parent and self._is_lost(run.parent)]:
            waiting.remove(orphans[0])
            self._fail(orphans[0], [f'it starts from {orphans[0].parent.name}, which failed'])

    def _is_lost(self, run: Run) -> bool:
        return run.folder in self._failed or bool((run.result() or {}).get('nan'))

    def _kill(self) -> None:
        for job in self._running.values():
            _signal(job, signal.SIGTERM)
        end = time.monotonic() + PATIENCE
        for job in self._running.values():
            with suppress(subprocess.TimeoutExpired):
                job.process.wait(max(end - time.monotonic(), 0))
            _signal(job, signal.SIGKILL)
        self._running.clear()


def environment(**variables: str) -> dict[str, str]:
    """Returns the environment of tools that find this kat_mm."""
    paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    return {**os.environ, 'PYTHONPATH': os.pathsep.join(paths), **variables}


def find_gpus() -> list[str]:
    """Returns the names of the visible GPUs, as of CUDA_VISIBLE_DEVICES."""
    count = torch.cuda.device_count()
    named = os.environ.get('CUDA_VISIBLE_DEVICES')
    return named.split(',')[:count] if named and count else [str(i) for i in range(count)]


def _cores() -> int:
    """Returns the number of cores that this process may use, where the system tells it."""
    usable = getattr(os, 'sched_getaffinity', None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def _next(waiting: list[Run]) -> Run | None:
    """Takes the first run out of the list that need not wait for another."""
    for run in waiting:
        if run.parent is None or run.parent.result():
            waiting.remove(run)
            return run
    return None


def _signal(job: _Job, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(job.process.pid, number)
