"""What a training run starts from, for each combination of --resume, resume and load_from."""

import os

import pytest
import torch
from mmengine.config import Config

from kat_mm.errors import DataError
from kat_mm.openmmlab.resume import choose_weights


@pytest.fixture
def work_dir(tmp_path, monkeypatch):
    """A work dir with two checkpoints, and one of pretrained weights beside it."""
    monkeypatch.chdir(tmp_path)
    weights = {'state_dict': {'weight': torch.zeros(3)}}
    torch.save(weights, 'weights.pth')
    (tmp_path / 'run').mkdir()
    state = {**weights, 'meta': {}, 'message_hub': {}, 'optimizer': {}}
    for epoch in (1, 2):
        torch.save(state, f'run/epoch_{epoch}.pth')
        os.utime(f'run/epoch_{epoch}.pth', (epoch, epoch))
    return tmp_path / 'run'


# Columns: --resume, settings of the config, then what counts with and without checkpoints in the
# work dir, as (load_from, resume).
CASES = [
    (None, {}, (None, False), (None, False)),
    (None, {'load_from': 'weights.pth'}, ('weights.pth', False), ('weights.pth', False)),
    ('auto', {}, ('run/epoch_2.pth', True), (None, False)),
    # A job that is started again and again begins from load_from, and then resumes.
    ('auto', {'load_from': 'weights.pth'}, ('run/epoch_2.pth', True), ('weights.pth', False)),
    ('run/epoch_1.pth', {'load_from': 'weights.pth'}, ('run/epoch_1.pth', True), None),
    (None, {'resume': True}, ('run/epoch_2.pth', True), (None, False)),
    (None, {'resume': True, 'load_from': 'run/epoch_1.pth'}, ('run/epoch_1.pth', True), None),
]


@pytest.mark.parametrize(('resume', 'settings', 'expected', 'expected_without'), CASES)
def test_choice(work_dir, resume, settings, expected, expected_without):
    defaults = {'work_dir': 'run', 'load_from': None, 'resume': False}
    config = Config({**defaults, **settings})
    choose_weights(config, resume)
    assert (config.load_from, config.resume) == expected

    for path in work_dir.iterdir():
        path.unlink()
    config = Config({**defaults, **settings})
    if expected_without is None:
        with pytest.raises(DataError, match=r'checkpoint run/epoch_1\.pth does not exist'):
            choose_weights(config, resume)
    else:
        choose_weights(config, resume)
        assert (config.load_from, config.resume) == expected_without
