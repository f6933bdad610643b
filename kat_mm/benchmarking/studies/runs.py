"""A single training of a study: its folder, its settings and how it ended."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigError
from .logs import attempts, figures, has_diverged
from .study import Study, Task, Variant

RESULT = 'result.json'
MARKS = (*',()[]', '"', "'")  # of lists and quotes, where settings are texts
Resolve = Callable[[Path, list[str]], Mapping]  # (config, KEY=VALUE settings) -> all settings


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        options: settings that override the task's config.
        key: tells its settings from others, those of `parent` included.
        folder: its work dir, whose name has the key: what was trained with other settings stays
            where it is.
        parent: the run whose weights it starts from.
    """

    task: Task
    variant: Variant
    seed: int
    options: Mapping[str, object]
    key: str
    folder: Path
    parent: 'Run | None' = None

    @property
    def name(self) -> str:
        return f'{self.task.name}/{self.variant.name}, seed {self.seed}'

    def settings(self) -> list[str]:
        """Returns the settings as KEY=VALUE, with the weights that it starts from."""
        options = dict(self.options)
        if self.parent:
            options['load_from'] = str(self.parent.checkpoint())
        return [f'{key}={as_text(value)}' for key, value in options.items()]

    def checkpoint(self) -> Path:
        """Returns the path of its final checkpoint, which mmengine notes in a file."""
        return self.folder / Path((self.folder / 'last_checkpoint').read_text().strip()).name

    def result(self) -> dict | None:
        """Returns what came out of it; None as long as it is not finished."""
        try:
            return json.loads((self.folder / RESULT).read_text())
        except FileNotFoundError:
            return None

    def finish(self, status: int, facts: Mapping[str, object]) -> dict | None:
        """Keeps and returns what came out of a process that ended; None if nothing did.

        Args:
            status: its exit status.
            facts: more that is kept.
        """
        if status == 0:
            found = figures(self.folder, self.task)
            result = None if found is None else {**found, 'nan': 0}
        else:
            result = {'nan': 1} if has_diverged(self.folder) else None
        if result is not None:
            result |= {'attempts': attempts(self.folder), **facts}
            partial = self.folder / f'{RESULT}.partial'
            partial.write_text(json.dumps(result, indent=2) + '\n')
            os.replace(partial, self.folder / RESULT)
        return result

    def start_anew(self) -> None:
        """Removes all that its processes have left."""
        shutil.rmtree(self.folder, ignore_errors=True)


def plan(study: Study, work_dir: Path, resolve: Resolve, quick: bool = False) -> list[Run]:
    """Returns all runs of a study, in the order in which they should be trained.

    Those that others wait for come first, then all of the first seed, so that a study which is
    interrupted has its seeds one by one.

    Args:
        study: the study.
        work_dir: where the folders of its runs are.
        resolve: reads a config with settings, and checks these.
        quick: puts the study's settings for trying it out into each run.

    Raises:
        ConfigError: for settings that a config does not take.
    """
    last = study.quick if quick else {}
    if quick and not last:
        raise ConfigError(f'--quick: study {study.name} has no settings quick=dict(...)')
    runs = {}
    for task in study.tasks.values():
        for variant in _parents_first(study.variants):
            options = {**study.options, **variant.options, **last}
            try:
                known = resolve(task.config, [f'{k}={as_text(v)}' for k, v in options.items()])
            except ConfigError as error:
                raise ConfigError(f'{task.name}/{variant.name}: {error}') from error
            for seed in study.seeds:
                parent = runs.get((task.name, variant.after, seed))
                key = _key(known, seed, parent.key if parent else None)
                folder = work_dir / task.name / variant.name / f'seed{seed}-{key}'
                seeded = {**options, 'randomness.seed': seed}
                run = Run(task, variant, seed, seeded, key, folder, parent)
                runs[task.name, variant.name, seed] = run
    waited_for = {id(run.parent) for run in runs.values()}
    place = {name: i for i, name in enumerate(study.variants)}
    return sorted(
        runs.values(),
        key=lambda run: (id(run) not in waited_for, run.seed, place[run.variant.name]),
    )


@contextmanager
def held(folder: Path) -> Iterator[int | None]:
    """Holds a run's folder: yields a file descriptor, or None where another process holds it.

    A process that inherits the descriptor holds the folder too, until it ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f'.{folder.name}.lock').open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file.fileno()


def as_text(value: object) -> str:
    """Returns a setting as --cfg-options takes it."""
    if isinstance(value, (list, tuple)):
        ends = '()' if isinstance(value, tuple) else '[]'
        return ends[0] + ','.join(map(as_text, value)) + ends[1]
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f'"{text}"' if isinstance(value, str) and any(mark in text for mark in MARKS) else text


def _parents_first(variants: Mapping[str, Variant]) -> list[Variant]:
    depth = {}
    for name, variant in variants.items():
        depth[name] = 0
        while variant.after:
            variant, depth[name] = variants[variant.after], depth[name] + 1
    return sorted(variants.values(), key=lambda variant: depth[variant.name])


def _key(settings: Mapping, seed: int, parent: str | None) -> str:
    text = json.dumps([settings, seed, parent], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
