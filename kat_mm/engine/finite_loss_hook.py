"""Stops a run that has diverged, before it spoils a checkpoint."""

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..errors import NonFiniteLossError
from .checkpoint_hook import latest_checkpoint


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops training at the first loss that is NaN or infinite.

    The loss of an iteration is read when the next one has begun, so that the GPU is not made to
    wait; before a checkpoint is written the last loss and all the weights are checked too, so
    that a checkpoint on disk is always a good one.

    Raises:
        NonFiniteLossError: names the iteration, the loss terms and the last good checkpoint.
    """

    def __init__(self):
        self._pending = None

    def before_train(self, runner) -> None:
        self._pending = None

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self._check_pending(runner)
        if isinstance(outputs, dict):
            terms = {name: v for name, v in outputs.items() if 'loss' in name}
            self._pending = (runner.iter + 1, terms)

    def after_train_epoch(self, runner) -> None:
        self._check_pending(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        self._check_pending(runner)
        for name, tensor in checkpoint.get('state_dict', {}).items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise NonFiniteLossError(
                    f'{name} holds NaN or infinite values after iteration {runner.iter + 1}; '
                    + self._advice(runner)
                )

    def _check_pending(self, runner) -> None:
        if self._pending is None:
            return
        (iteration, terms), self._pending = self._pending, None
        values = {name: float(torch.as_tensor(v).sum()) for name, v in terms.items()}
        if all(torch.isfinite(torch.tensor(v)) for v in values.values()):
            return
        listed = ', '.join(f'{name} {value:.4g}' for name, value in values.items())
        raise NonFiniteLossError(
            f'the loss is not finite at iteration {iteration}: {listed}; ' + self._advice(runner)
        )

    @staticmethod
    def _advice(runner) -> str:
        last = latest_checkpoint(runner.work_dir)
        kept = f'the last good checkpoint is {last}' if last else 'no checkpoint was saved yet'
        return f'{kept}. Lower the learning rate, warm up longer or clip gradients'
