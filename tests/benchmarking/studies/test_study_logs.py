"""Figures come from what a training logged, and from its last validation alone."""

import json
from pathlib import Path

import numpy as np
import pytest

from kat_mm.benchmarking.studies.logs import figures, has_diverged, last_lines
from kat_mm.benchmarking.studies.study import Task

TASK = Task('detection', Path('config.py'), ('box AP', 'mask AP'))
SCORES = {'coco/bbox_mAP': 0.5, 'coco/segm_mAP': 0.25, 'coco/bbox_mAP_50': 0.75}


def log(folder, *records, start='20260101_000000'):
    path = folder / start / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))


def train(step, **values):
    return dict(step=step, loss=1 / step, time=0.01 * step, memory=step, **values)


def test_figures(tmp_path):
    log(tmp_path, *map(train, range(1, 31)), dict(step=30, **SCORES))
    found = figures(tmp_path, TASK)
    assert (found['box AP'], found['mask AP']) == (0.5, 0.25)
    assert found['loss'] == pytest.approx(np.mean([1 / 28, 1 / 29, 1 / 30]))
    assert found['step_ms'] == pytest.approx(np.median(np.arange(1, 31)) * 10)
    assert found['peak_mib'] == 30
    assert {*found} == {'box AP', 'mask AP', 'loss', 'step_ms', 'peak_mib'}


def test_scores_in_percent(tmp_path):
    log(tmp_path, train(1), dict(step=1, mIoU=64.5))
    found = figures(tmp_path, Task('segmentation', Path('config.py'), ('mIoU',)))
    assert found['mIoU'] == pytest.approx(0.645)


def test_validations_count_epochs_where_training_does(tmp_path):
    log(tmp_path, train(10, epoch=1), dict(step=1, **SCORES), train(20, epoch=2))
    assert figures(tmp_path, TASK) is None
    log(tmp_path, train(20, epoch=2), dict(step=2, **SCORES), start='20260101_000001')
    assert figures(tmp_path, TASK)['box AP'] == 0.5


@pytest.mark.parametrize(
    'records',
    [
        [],
        [train(1)],
        [train(1), dict(step=1, **{'coco/bbox_mAP': 0.5})],
        [train(1), dict(step=1, **SCORES), train(2)],  # of an earlier step
    ],
)
def test_unfinished_trainings_have_none(tmp_path, records):
    log(tmp_path, *records)
    assert figures(tmp_path, TASK) is None


@pytest.mark.parametrize(
    ('line', 'diverged'),
    [
        ('error: the loss is not finite at iteration 3: loss nan; lower the learning rate', True),
        ('error: neck.weight holds NaN or infinite values after iteration 3; lower', True),
        ('error: config config.py does not exist', False),
        ('the loss is not finite', False),
    ],
)
def test_divergence(tmp_path, line, diverged):
    (tmp_path / 'output.txt').write_text(f'Iter(train) [3/9]\n\n{line}\n')
    assert has_diverged(tmp_path) == diverged
    assert last_lines(tmp_path) == ['Iter(train) [3/9]', line]
    assert not has_diverged(tmp_path / 'gone')
