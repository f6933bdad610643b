"""A run that diverges stops, and leaves good checkpoints only."""

import math
import re

import pytest
import torch
from mmengine.hooks import Hook
from small_runner import small_runner

from kat_mm.errors import NonFiniteLossError, UserError
from kat_mm.openmmlab import FiniteLossHook
from kat_mm.weights.reading import read_checkpoint


class Diverge(Hook):
    """Multiplies the loss, or the weights behind it, by a value from an iteration on."""

    def __init__(self, iteration, factor=1.0, weight=1.0):
        self.iteration, self.factor, self.weight = iteration, factor, weight

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.iteration:
            runner.model.factor = self.factor

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            runner.model.linear.weight.data[0, 2] *= self.weight


def diverge(work_dir, *, by_epoch=True, length=3, **kwargs):
    hooks = [FiniteLossHook(), Diverge(**kwargs)]
    runner = small_runner(work_dir, hooks=hooks, by_epoch=by_epoch, length=length)
    with pytest.raises(NonFiniteLossError) as caught:
        runner.train()
    assert isinstance(caught.value, UserError)
    return str(caught.value)


@pytest.mark.parametrize(('factor', 'shown'), [(math.nan, 'nan'), (math.inf, 'inf')])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, factor, shown):
    message = diverge(tmp_path, iteration=6, factor=factor)
    assert 'not finite at iteration 6: ' in message
    for name in ('loss', 'loss_a', 'loss_b'):
        assert re.search(rf'\b{name} -?(nan|inf)\b', message)
    assert shown in message
    assert f'the last good checkpoint is {tmp_path / "epoch_1.pth"}. ' in message
    assert 'Lower the learning rate' in message
    assert [path.name for path in tmp_path.glob('*.pth')] == ['epoch_1.pth']
    weights = read_checkpoint(tmp_path / 'epoch_1.pth')['state_dict']
    assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_before_the_first_checkpoint(tmp_path):
    assert 'no checkpoint was saved yet' in diverge(tmp_path, iteration=1, factor=math.nan)


@pytest.mark.parametrize('value', [math.nan, math.inf])
@pytest.mark.parametrize(('by_epoch', 'kept'), [(True, 'epoch_1.pth'), (False, 'iter_7.pth')])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, by_epoch, kept, value):
    """The loss of the last iteration was still finite."""
    message = diverge(tmp_path, iteration=8, weight=value, by_epoch=by_epoch, length=9)
    assert 'linear.weight holds NaN or infinite values after iteration 8; ' in message
    assert f'the last good checkpoint is {tmp_path / kept}. ' in message
    files = list(tmp_path.glob('*.pth*'))
    assert max(files, key=lambda path: path.stat().st_mtime_ns).name == kept
    for path in files:
        assert all(w.isfinite().all() for w in read_checkpoint(path)['state_dict'].values())


def test_finite_losses_pass_without_warnings(tmp_path, recwarn):
    small_runner(tmp_path, hooks=[FiniteLossHook()]).train()
    assert (tmp_path / 'epoch_2.pth').is_file()
    assert not [w for w in recwarn if 'requires_grad' in str(w.message)]
