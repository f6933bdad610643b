import sys
from pathlib import Path

import pytest

from kat_mm.benchmarking.studies.pool import Pool
from kat_mm.benchmarking.studies.runs import plan
from kat_mm.benchmarking.studies.study import read_study

FAKE = Path(__file__).with_name('fake_training.py')
STUDY = """
tasks = dict(small=dict(config='config.py', scores=['mIoU']))
variants = {
    'narrow': {'model.width': 1},
    'wide': dict(title='Wide', options={'model': {'width': 2}}),
    'tuned': dict(after='wide', options={'model.width': 3}),
}
seeds = (0, 1)
"""


@pytest.fixture
def resolve():
    """Reads a config whose only setting is a depth."""

    def resolve(config, options):
        return {'depth': config.read_text(), **dict(option.split('=', 1) for option in options)}

    return resolve


@pytest.fixture
def study_file(tmp_path):
    (tmp_path / 'config.py').write_text('depth = 1')
    path = tmp_path / 'widths.py'
    path.write_text(STUDY)
    return path


@pytest.fixture
def study(study_file):
    return read_study(study_file)


@pytest.fixture
def runs(study, tmp_path, resolve):
    return plan(study, tmp_path / 'work', resolve)


@pytest.fixture
def train():
    """Trains runs by the stand-in: returns what was reported, by the names of the runs."""

    def train(runs, jobs=2, gpus=(), seconds=None):
        reported = {}

        def report(run, result, reason):
            assert run.name not in reported
            reported[run.name] = result, '\n'.join(reason)

        pool = Pool([sys.executable, str(FAKE)], jobs, gpus, report)
        pool.train([run for run in runs if run.result() is None], seconds)
        assert pool.running == 0
        return reported

    return train
