"""Rows of figures and their CSV files."""

import csv
import re
import shutil
import subprocess

import pytest
import torch

from kat_mm.benchmarking import rows
from kat_mm.benchmarking.rows import (
    ORIGIN,
    add_efficiency,
    append_csv,
    check_csv,
    commit,
    device_name,
    origin,
)
from kat_mm.errors import DataError

CPU = torch.device('cpu')


def read(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout that kat_mm is in: git(*arguments)."""
    if not shutil.which('git'):
        pytest.skip('needs git')

    def git(*arguments):
        identity = ['-c', 'user.name=me', '-c', 'user.email=me@localhost']
        command = ['git', '-C', tmp_path, *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    file = tmp_path / 'rows.py'
    file.write_text('')
    monkeypatch.setattr(rows, '__file__', str(file))
    git('init', '-q')
    git('add', '.')
    git('commit', '-q', '-m', 'first')
    return git


def test_commit(checkout, tmp_path):
    name = checkout('rev-parse', '--short', 'HEAD')
    (tmp_path / 'untracked').touch()
    assert commit() == name
    (tmp_path / 'rows.py').write_text('changed')
    assert commit() == f'{name}+'


def test_commit_outside_git(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, '__file__', str(tmp_path / 'rows.py'))
    monkeypatch.delenv('KAT_MM_COMMIT', raising=False)
    assert commit() == 'unknown'
    monkeypatch.setenv('KAT_MM_COMMIT', '')
    assert commit() == 'unknown'


def test_a_commit_that_is_given_is_taken(checkout, monkeypatch):
    """A copy that lies inside of another repository has git tell the commit of that one."""
    name = checkout('rev-parse', '--short', 'HEAD')
    assert commit() == name
    monkeypatch.setenv('KAT_MM_COMMIT', 'abc1234')
    assert commit() == 'abc1234'


def test_commit_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.delenv('KAT_MM_COMMIT', raising=False)
    assert commit() == 'unknown'


def test_origin():
    values = origin(CPU)
    assert tuple(values) == ORIGIN
    assert re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00', values['date'])
    assert values['device'] == device_name(CPU) == f'CPU, threads: {torch.get_num_threads()}'
    assert values['torch'] == torch.__version__


def test_csv_has_one_header(tmp_path):
    path = tmp_path / 'new' / 'results.csv'
    columns = ('name', 'ms', 'note')
    append_csv(path, columns, [{'name': 'a, b', 'ms': 1 / 3}])
    append_csv(path, columns, [{'name': 'c', 'ms': 2.0, 'note': 'x'}, {'name': 'd'}])
    assert path.read_text() == 'name,ms,note\n"a, b",0.333333,\nc,2,x\nd,,\n'
    assert [row['name'] for row in read(path)] == ['a, b', 'c', 'd']


def test_csv_of_other_columns_is_left_alone(tmp_path):
    path = tmp_path / 'results.csv'
    append_csv(path, ('a', 'b'), [{'a': 1, 'b': 2}])
    before = path.read_text()
    message = 'has the columns a,b, the new rows a,c; choose another file or move this one away'
    for call in (check_csv, lambda *args: append_csv(*args, [{'a': 1, 'c': 2}])):
        with pytest.raises(DataError, match=re.escape(f'--csv {path}: {message}')):
            call(path, ('a', 'c'))
    assert path.read_text() == before


def test_csv_that_cannot_be_written(tmp_path):
    (tmp_path / 'picture.png').write_bytes(b'\x89PNG\xff\xfe')
    (tmp_path / 'file').touch()
    for path, reason in (
        (tmp_path, 'Is a directory'),
        (tmp_path / 'picture.png', 'it is no text'),
        (tmp_path / 'file' / 'results.csv', 'File exists|Not a directory'),
    ):
        with pytest.raises(DataError, match=rf'cannot be appended to \(({reason})\)'):
            check_csv(path, ('a',))


def test_efficiency_refers_to_one_process():
    runs = [dict(processes=n, images_per_s=rate) for n, rate in ((2, 180.0), (1, 100.0))]
    add_efficiency(runs)
    assert [run['efficiency'] for run in runs] == [0.9, 1.0]
    add_efficiency(alone := [dict(processes=2, images_per_s=180.0)])
    assert 'efficiency' not in alone[0]
