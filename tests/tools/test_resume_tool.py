"""A run that was killed goes on as if nothing had happened."""

import signal

import pytest
import torch

from kat_mm.openmmlab.curves import read_scalars
from kat_mm.weights.reading import read_checkpoint

pytestmark = pytest.mark.slow


def losses(work_dir):
    return {record['step']: record['loss'] for record in read_scalars(work_dir)[0]}


def test_killed_and_resumed_run_equals_an_uninterrupted_one(
    trained, breaking_config, run_tool, tmp_path
):
    """Killed in the middle of the second epoch, and once more in the middle of the third."""
    command = (tmp_path, 'train.py', breaking_config, '--work-dir', 'run')
    run = run_tool(*command, KILL_AT='5')
    assert run.status == -signal.SIGKILL
    run = run_tool(*command, '--resume', KILL_AT='8')
    assert run.status == -signal.SIGKILL
    assert 'resumed epoch: 1, iter: 3' in run.stdout
    run = run_tool(*command, '--resume', 'auto').ended_well()
    assert 'resumed epoch: 2, iter: 6' in run.stdout

    expected, resumed = losses(trained[1]), losses(tmp_path / 'run')
    assert resumed.keys() == expected.keys()
    assert resumed == expected
    first, second = (
        read_checkpoint(work_dir / 'epoch_3.pth')['state_dict']
        for work_dir in (trained[1], tmp_path / 'run')
    )
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=0, atol=0, msg=name)
    # The run is random enough for the comparison to mean something.
    assert len(set(expected.values())) == len(expected)


def test_nothing_to_resume_trains_from_the_start(breaking_config, run_tool, tmp_path):
    run = run_tool(
        tmp_path, 'train.py', breaking_config, '--work-dir', 'run', '--resume', KILL_AT='1'
    )
    assert run.status == -signal.SIGKILL
    assert 'nothing to resume in run: training from the start' in run.stdout
