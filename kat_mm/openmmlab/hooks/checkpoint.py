"""Checkpoints that survive a crash at any moment."""

import os
import re
import zipfile
from contextlib import contextmanager
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS


class AtomicLocalBackend(LocalBackend):
    """Writes a local file completely, or not at all."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes `obj` to a file beside `filepath`, then renames it to that in one step."""
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + '.partial')
        try:
            with open(partial, 'wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)  # above all on a full disk
            raise


register_backend('atomic_local', AtomicLocalBackend, force=True)


class _DeferredRemovals:
    """A file backend that remembers what to remove until it is told to."""

    def __init__(self, backend):
        self._backend = backend
        self._removals = []

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def remove(self, path):
        self._removals.append((self._backend.remove, path))

    def rmtree(self, path):
        self._removals.append((self._backend.rmtree, path))

    def carry_out(self):
        for remove, path in self._removals:
            remove(path)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """Saves checkpoints as mmengine's CheckpointHook does, without a moment of danger.

    A checkpoint that is interrupted while being written leaves the ones before it intact, under
    their names: files are written beside their place and renamed, and outdated checkpoints go
    only when the new one is there. Takes CheckpointHook's arguments; files are local unless
    `backend_args` or an `out_dir` elsewhere says otherwise.
    """

    def __init__(self, *args, backend_args: dict | None = None, **kwargs):
        remote = '://' in str(kwargs.get('out_dir') or '')
        if backend_args is None and not remote:
            backend_args = dict(backend='atomic_local')
        super().__init__(*args, backend_args=backend_args, **kwargs)

    @contextmanager
    def _removals_last(self):
        if isinstance(self.file_backend, _DeferredRemovals):  # saving the best saves the last too
            yield
            return
        backend = self.file_backend
        self.file_backend = _DeferredRemovals(backend)
        try:
            yield
            self.file_backend.carry_out()
        finally:
            self.file_backend = backend

    def _save_checkpoint_with_step(self, runner, step, meta):
        with self._removals_last():
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner, metrics):
        with self._removals_last():
            super()._save_best_checkpoint(runner, metrics)


def latest_checkpoint(work_dir: str | Path) -> str | None:
    """Returns the path of the newest whole checkpoint of a work dir, None without one.

    The file `last_checkpoint` names it. After a crash that file may be missing, empty, name a
    file that is gone or cut short, or be out of date; then the newest whole epoch_*.pth or
    iter_*.pth counts. Torch's checkpoints are zip files, whose directory stands at the end, so
    that a truncated one is told from a whole one at once.
    """
    work_dir = Path(work_dir)
    files = [*work_dir.glob('epoch_*.pth'), *work_dir.glob('iter_*.pth')]
    files = sorted(filter(_is_whole, files), key=_age)
    pointer = work_dir / 'last_checkpoint'
    named = Path(pointer.read_text().strip()) if pointer.is_file() else work_dir
    if _is_whole(named):
        # A crash came between a checkpoint and its entry if that checkpoint is both further on
        # and younger. A copied work dir has arbitrary times, a run started anew lower numbers.
        files = [f for f in files if _step(f) > _step(named) and _age(f) > _age(named)]
        files.insert(0, named)
    return str(files[-1]) if files else None


def _is_whole(path: Path) -> bool:
    return path.is_file() and zipfile.is_zipfile(path)


def _step(path: Path) -> int:
    digits = re.findall(r'\d+', path.stem)
    return int(digits[-1]) if digits else -1


def _age(path: Path) -> tuple[int, int]:
    return path.stat().st_mtime_ns, _step(path)
