"""Hooks that break a run at a chosen iteration; a run imports them with custom_imports."""

import os
import signal

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class KillHook(Hook):
    """Kills its own process before the iteration whose number KILL_AT gives, counted from 1."""

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if os.environ.get('KILL_AT') == str(runner.iter + 1):
            os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module()
class NaNWeightHook(Hook):
    """Makes one weight NaN before the iteration whose number NAN_AT gives, counted from 1."""

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if os.environ.get('NAN_AT') == str(runner.iter + 1):
            with torch.no_grad():
                runner.model.roi_head.mask_head.conv_logits.bias[:] = torch.nan
