"""Resuming with other settings is refused, or what has no effect is told."""

import pytest
import torch
from mmengine.config import Config
from torch import nn

from kat_mm.errors import ConfigError
from kat_mm.openmmlab.resume import ResumeCheckHook, check_settings

SETTINGS = dict(
    model=dict(type='RetinaNet'),
    train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=3),
    optim_wrapper=dict(
        type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.1, betas=(0.9, 0.999))
    ),
    param_scheduler=[dict(type='LinearLR', begin=0, end=5)],
)


def check(changes, meta=None, then=None, **content):
    """Checks a config with changes against a checkpoint of that without them, or with others."""
    saved = Config(SETTINGS)
    saved.merge_from_dict(then or {})
    now = Config(SETTINGS)
    now.merge_from_dict(changes)
    check_settings(now, dict(meta=dict(cfg=saved.pretty_text, **(meta or {})), **content), 'a.pth')


def test_what_is_the_same_or_takes_effect_is_not_told(capfd):
    check({})
    check({'model.type': 'FCOS', 'optim_wrapper.clip_grad.max_norm': 1.0})
    assert not any(capfd.readouterr())


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'optim_wrapper.optimizer.lr': 0.5}, 'ignores optim_wrapper.optimizer.lr=0.5 (was 0.1)'),
        ({'param_scheduler.0.end': 9}, 'ignores param_scheduler.0.end=9 (was 5)'),
        (
            {'optim_wrapper.paramwise_cfg.layer_decay_rate': 0.5},
            'ignores optim_wrapper.paramwise_cfg.layer_decay_rate=0.5 (was None)',
        ),
        ({'train_cfg.max_epochs': 5}, 'training ends at train_cfg.max_epochs=5, but the learning'),
    ],
)
def test_what_has_no_effect_is_told(capfd, changes, message):
    check(changes)
    lines = [line for line in ''.join(capfd.readouterr()).splitlines() if line.strip()]
    assert len(lines) == 1
    assert message in lines[0]
    assert 'to start from its weights: --cfg-options load_from=a.pth' in lines[0]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'optim_wrapper.optimizer.type': 'SGD'}, 'optim_wrapper, now SGD and AdamW then'),
        ({'train_cfg.type': 'IterBasedTrainLoop'}, 'now a loop by iteration and a loop by epoch'),
        ({'param_scheduler': [dict(type='PolyLR')]}, 'now PolyLR and LinearLR then'),
        ({'param_scheduler': SETTINGS['param_scheduler'] * 2}, 'now LinearLR, LinearLR and'),
    ],
)
def test_other_kinds_are_refused(changes, message):
    with pytest.raises(ConfigError, match=f'a.pth cannot be resumed with another .*{message}'):
        check(changes)


def test_lost_gradients_are_refused():
    counts = {'optim_wrapper.accumulative_counts': 4}
    with pytest.raises(ConfigError, match='it was saved 2 iterations after the last update'):
        check(counts, dict(iter=6), counts)
    check(counts, dict(iter=8), counts)
    check(counts, dict(iter=6))  # it did not accumulate
    check(counts, dict(iter=6), counts, gradients={})
    check(counts, dict(iter=6), counts, message_hub=dict(runtime_info=dict(max_iters=6)))


def test_the_config_of_a_checkpoint_is_not_run(tmp_path):
    text = f'more = open({str(tmp_path / "made")!r}, "w")'
    check_settings(Config(SETTINGS), dict(meta=dict(cfg=text)), 'a.pth')
    assert not (tmp_path / 'made').exists()


class Runner:
    """What the hook asks of one."""

    _resume, _load_from = True, 'a.pth'

    def __init__(self, model, frozen=0):
        self.model, self.optim_wrapper = model, self
        self.optimizer = torch.optim.AdamW([*model.parameters()][frozen:])


def checkpoint(model):
    optimizer = torch.optim.AdamW(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    return dict(state_dict=model.state_dict(), optimizer=optimizer.state_dict())


@pytest.mark.parametrize(
    ('model', 'frozen', 'message'),
    [
        (nn.Linear(2, 4), 0, r'weight is \(3, 2\) there and \(4, 2\) in the model'),
        (nn.Linear(2, 3, bias=False), 0, 'the model has no bias'),
        (nn.Sequential(nn.Linear(2, 3)), 0, 'it lacks 0.weight'),
        (nn.Linear(2, 3), 1, '1 groups with 2 tensors, that of the model 1 groups with 1 tensors'),
    ],
)
def test_models_that_differ(model, frozen, message):
    hook, saved = ResumeCheckHook(), checkpoint(nn.Linear(2, 3))
    with pytest.raises(ConfigError, match=f'a.pth cannot be resumed with this config: .*{message}'):
        hook.after_load_checkpoint(Runner(model, frozen), saved)
    hook.after_load_checkpoint(Runner(nn.Linear(2, 3)), saved)
