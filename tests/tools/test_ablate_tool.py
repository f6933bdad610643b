"""A study of real trainings, each in a process of its own, from its file to table and picture."""

import csv
import signal

import pytest
from PIL import Image
from tool_runs import TOOLS, run_alone

pytestmark = pytest.mark.slow

STUDY = """
tasks = dict(segmentation=dict(config={config!r}, scores=['mIoU']))
variants = dict(
    softmax={{'model.backbone.attention.type': 'softmax'}},
    gated=dict(
        title='softmax + gated KArAt',
        after='softmax',
        options={{'model.backbone.attention': dict(type='KArAt', base='softmax', rank=3)}},
    ),
)
seeds = (0,)
options = {{'model.backbone.attention.window_size': 4}}
"""


@pytest.fixture
def study(segmentation_config, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(
        f'_base_ = {str(segmentation_config)!r}\n'
        "model = dict(backbone=dict(attention=dict(type='softmax')))\n"
        "custom_imports = dict(imports=['breaking_hooks', *_base_.custom_imports.imports])\n"
        "custom_hooks = [*_base_.custom_hooks, dict(type='KillHook')]\n"
    )
    path = tmp_path / 'gates.py'
    path.write_text(STUDY.format(config='config.py'))
    return path


def rows(path):
    with path.open(newline='') as file:
        return {row['variant']: row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_a_study_is_trained_and_goes_on_after_a_kill(study, tmp_path):
    command = (tmp_path, TOOLS / 'ablate.py', study, '--cpu', '--out', 'out')
    run = run_alone(*command, KILL_AT='2')
    assert run.error() == (
        '2 of 2 runs are missing, 2 of them failed, as told above; the same command goes on'
    )
    assert f'(exit status {-signal.SIGKILL}; ' in run.stdout
    assert rows(tmp_path / 'out' / 'gates.csv') == {}

    run = run_alone(*command).ended_well()
    assert 'gates: 2 runs in work_dirs/gates, 0 of them finished' in run.stdout
    assert 'segmentation/gated, seed 0: mIoU 0.' in run.stdout
    found = rows(tmp_path / 'out' / 'gates.csv')
    assert [*found] == ['softmax', 'gated']
    assert (found['softmax']['attempts'], found['gated']['attempts']) == ('2', '1')
    for row in found.values():
        assert 0 < float(row['mIoU']) < 1
        assert float(row['loss']) > 0
        assert float(row['peak_mib']) > 100
    assert Image.open(tmp_path / 'out' / 'gates.png').size[0] > 500
    [log] = tmp_path.glob('work_dirs/gates/segmentation/gated/*/output.txt')
    assert 'Load checkpoint from work_dirs/gates/segmentation/softmax/seed0-' in log.read_text()

    run = run_alone(*command, '--report').ended_well()
    assert 'gates: 2 runs in work_dirs/gates, 2 of them finished' in run.stdout
    assert rows(tmp_path / 'out' / 'gates.csv') == found


def test_mistakes_are_told_before_any_training(study, run_tool, tmp_path):
    text = study.read_text()
    study.write_text(text.replace('options = {', "options = {'train_cfg.max_itrs': 3, "))
    message = run_tool(tmp_path, 'ablate.py', study).error()
    assert message == (
        'segmentation/softmax: --cfg-options train_cfg.max_itrs: IterBasedTrainLoop takes no '
        'max_itrs; did you mean max_iters?'
    )
    study.write_text(text.replace("after='softmax'", "after='sofmax'"))
    message = run_tool(tmp_path, 'ablate.py', study).error()
    assert message.endswith("there is no variant after='sofmax'; did you mean softmax?")
    assert run_tool(tmp_path, 'ablate.py', 'gate.py').error() == (
        'study gate.py does not exist; did you mean gates.py?'
    )
    assert not (tmp_path / 'work_dirs').exists()
    study.write_text(text)
    for option in ('--work-dir', '--out'):
        message = run_tool(tmp_path, 'ablate.py', study, '--report', option, study).error()
        assert message.startswith(f'{option} {study}: cannot be a folder (FileExistsError')


def test_a_preparation_that_fails(study, run_tool, tmp_path):
    study.write_text(study.read_text() + "prepare = [['make_digit_scenes.py', 'd', '--train', -1]]")
    run = run_tool(tmp_path, 'ablate.py', study, '--cpu')
    assert run.status == 1
    assert run.stderr.splitlines() == [
        'error: the number of train scenes must be 0 or more, not -1',  # that of the other tool
        'error: study gates: its preparation failed: make_digit_scenes.py d --train -1',
    ]
