"""Checkpoints that survive a crash at any moment."""

import os
import re
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer, print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import Tensor, nn


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

    Where `accumulative_counts` leaves gradients that no update has used yet, a checkpoint holds
    them too, as `gradients`, and a resumed run starts with them. Those of several processes are
    saved as their mean, with which the next update is the same up to rounding.

    What it saves holds no objects of mmengine, so that `torch.load` reads it as it is.
    """

    _gradients: dict[str, Tensor] | None = None

    def __init__(self, *args, backend_args: dict | None = None, **kwargs):
        remote = '://' in str(kwargs.get('out_dir') or '')
        if backend_args is None and not remote:
            backend_args = dict(backend='atomic_local')
        super().__init__(*args, backend_args=backend_args, **kwargs)

    @contextmanager
    def _whole(self, runner):
        """Saves within it hold all that a resumed run needs, and removals come after them."""
        if isinstance(self.file_backend, _DeferredRemovals):  # saving the best saves the last too
            yield
            return
        backend = self.file_backend
        self.file_backend = _DeferredRemovals(backend)
        self._gradients = _unused_gradients(runner)  # here, as the first process saves alone
        try:
            yield
            self.file_backend.carry_out()
        finally:
            self.file_backend = backend
            self._gradients = None

    def _save_checkpoint_with_step(self, runner, step, meta):
        with self._whole(runner):
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner, metrics):
        with self._whole(runner):
            super()._save_best_checkpoint(runner, metrics)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self._gradients:
            checkpoint['gradients'] = self._gradients
        for key in ('meta', 'message_hub', 'param_schedulers'):
            if key in checkpoint:
                checkpoint[key] = _plain(checkpoint[key])

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        scalars = checkpoint.get('message_hub', {}).get('log_scalars', {})
        for name, value in scalars.items():
            if isinstance(value, dict):
                data = (value[key].cpu().numpy() for key in ('log_history', 'count_history'))
                scalars[name] = HistoryBuffer(*data, value['max_length'])
        gradients = checkpoint.pop('gradients', None)
        if gradients and runner._resume:
            for name, parameter in _model(runner).named_parameters():
                if name in gradients:
                    parameter.grad = gradients[name].to(parameter)

    def before_train(self, runner) -> None:
        super().before_train(runner)
        if runner.iter and any(p.grad is not None for p in runner.model.parameters()):
            print_log('the gradients since the last update are restored: none is lost', 'current')


def _plain(node: object) -> object:
    """Returns what a checkpoint holds with mmengine's buffers as dicts, numpy's numbers as numbers.

    A buffer's dict has the arguments that make it.
    """
    if isinstance(node, HistoryBuffer):
        history, counts = map(torch.from_numpy, node.data)
        return dict(log_history=history, count_history=counts, max_length=node.max_length)
    if isinstance(node, np.generic):
        return node.item()
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    return [_plain(value) for value in node] if type(node) is list else node


def _model(runner) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _unused_gradients(runner) -> dict[str, Tensor] | None:
    """Returns the gradients that wait for an update, as means over all processes."""
    wrapper = runner.optim_wrapper
    if getattr(wrapper, '_accumulative_counts', 1) == 1 or wrapper.should_update():
        return None
    gradients = {}
    for name, parameter in _model(runner).named_parameters():
        if parameter.requires_grad and get_world_size() > 1:
            # A process that has not used a parameter has no gradient, and takes part all the same.
            mean = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            all_reduce(mean, 'mean')
            gradients[name] = mean.cpu()
        elif parameter.grad is not None:
            gradients[name] = parameter.grad.detach().cpu().clone()
    return gradients


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
