"""Stops a run that has diverged, before it spoils a checkpoint."""

import math

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ...errors import NonFiniteLossError
from .checkpoint import latest_checkpoint
from .deferred import DeferredTerms


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops training once a loss was NaN or infinite, by the next line of the log.

    Losses on a GPU are read with those of the log, so that it goes on while they are computed; on
    a CPU they are read at once. Before an evaluation, and before a checkpoint is written, they are
    read too, and then all its weights are checked, so that a checkpoint on disk is always a good
    one.

    Args:
        interval: iterations after which losses are read at the latest; by default, with the log.

    Raises:
        NonFiniteLossError: names the first such iteration, the loss terms and the last good
            checkpoint.
    """

    def __init__(self, interval: int | None = None):
        self._losses = DeferredTerms(interval)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        losses = {
            name: value.detach().sum() if isinstance(value, torch.Tensor) else value
            for name, value in (outputs or {}).items()
            if 'loss' in name
        }
        self._losses.add(runner.iter + 1, losses)
        if self._losses.is_due(runner, batch_idx):
            self._check_losses(runner)

    def before_val(self, runner) -> None:
        self._check_losses(runner)

    def after_train(self, runner) -> None:
        self._check_losses(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        self._check_losses(runner)
        for name, tensor in checkpoint['state_dict'].items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise NonFiniteLossError(
                    f'{name} holds NaN or infinite values after iteration '
                    f'{checkpoint["meta"]["iter"]}; {_advice(runner)}'
                )

    def _check_losses(self, runner) -> None:
        for iteration, losses in self._losses.read():
            if not all(map(math.isfinite, losses.values())):
                listed = ', '.join(f'{name} {value:.4g}' for name, value in losses.items())
                raise NonFiniteLossError(
                    f'the loss is not finite at iteration {iteration}: {listed}; {_advice(runner)}'
                )


def _advice(runner) -> str:
    last = latest_checkpoint(runner.work_dir)
    kept = f'the last good checkpoint is {last}' if last else 'no checkpoint was saved yet'
    return f'{kept}. Lower the learning rate, warm up longer or clip gradients'
