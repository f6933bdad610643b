"""Stops a run that has diverged, before it spoils a checkpoint."""

import math

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ...errors import NonFiniteLossError
from .checkpoint import latest_checkpoint


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops training at the first loss that is NaN or infinite.

    Before a checkpoint is written all its weights are checked too, so that a checkpoint on disk
    is always a good one. Reading the loss makes nothing wait: mmengine has read it by then, for
    its log.

    Raises:
        NonFiniteLossError: names the iteration, the loss terms and the last good checkpoint.
    """

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        terms = {
            name: torch.as_tensor(value).detach().sum().item()
            for name, value in (outputs or {}).items()
            if 'loss' in name
        }
        if not all(map(math.isfinite, terms.values())):
            listed = ', '.join(f'{name} {value:.4g}' for name, value in terms.items())
            raise NonFiniteLossError(
                f'the loss is not finite at iteration {runner.iter + 1}: {listed}; '
                + _advice(runner)
            )

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        for name, tensor in checkpoint['state_dict'].items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise NonFiniteLossError(
                    f'{name} holds NaN or infinite values after iteration '
                    f'{checkpoint["meta"]["iter"]}; {_advice(runner)}'
                )


def _advice(runner) -> str:
    last = latest_checkpoint(runner.work_dir)
    kept = f'the last good checkpoint is {last}' if last else 'no checkpoint was saved yet'
    return f'{kept}. Lower the learning rate, warm up longer or clip gradients'
