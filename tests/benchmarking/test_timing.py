"""What the benchmark tools share."""

import argparse
import csv
import re
import shutil
import subprocess
import time

import pytest
import torch

from kat_mm.benchmarking import timing
from kat_mm.benchmarking.timing import (
    ORIGIN,
    Spread,
    append_csv,
    check_csv,
    choose_device,
    commit,
    device_name,
    origin,
    positive,
    progress,
    spread,
    time_in_turns,
)
from kat_mm.errors import ConfigError, DataError

CPU = torch.device('cpu')


def read(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ('values', 'expected'),
    [
        ([3.0], Spread(3, 3, 3)),
        ([1.0, 2.0], Spread(1.25, 1.5, 1.75)),
        ([5.0, 1.0, 4.0, 2.0, 3.0], Spread(2, 3, 4)),
    ],
)
def test_spread(values, expected):
    assert spread(values) == expected


def test_calls_take_turns():
    """Each round has a batch of each, and another one first."""
    order, rounds = [], []
    calls = {name: lambda name=name: order.append(name) for name in 'abc'}
    times = time_in_turns(calls, 4, CPU, repeats=2, on_round=lambda: rounds.append(len(order)))
    assert ''.join(order) == 'aabbccbbccaaccaabbaabbcc'
    assert rounds == [6, 12, 18, 24]
    assert [len(times[name]) for name in 'abc'] == [4, 4, 4]


def test_times_are_those_of_one_call():
    times = time_in_turns({'': lambda: time.sleep(0.02)}, 3, CPU, repeats=2)
    assert 20 <= min(times['']) < 40


@pytest.mark.parametrize(('ms', 'fewest', 'most'), [(0, 2, 200), (1, 1, 5), (7, 1, 1)])
def test_batches_last_for_a_given_time(ms, fewest, most):
    calls = 0

    def call():
        nonlocal calls
        calls += 1
        if ms:
            time.sleep(1e-3 * ms)

    time_in_turns({'': call}, 3, CPU, batch_ms=5.0)
    assert 3 * fewest <= calls - 1 <= 3 * most  # one to see how long it takes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_times_on_a_gpu_leave_launches_out():
    small, large = (torch.zeros(size, device='cuda') for size in (1, 1 << 26))
    calls = {'small': lambda: small.add_(1), 'large': lambda: large.add_(1)}
    times = time_in_turns(calls, 5, torch.device('cuda'), batch_ms=2.0)
    small_ms, large_ms = (spread(times[name]).median for name in calls)
    assert small_ms < 0.004  # a launch alone takes the host longer
    assert 0.02 < large_ms < 5  # 512 MiB
    assert large.unique().numel() == 1


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout that kat_mm is in: git(*arguments)."""
    if not shutil.which('git'):
        pytest.skip('needs git')

    def git(*arguments):
        identity = ['-c', 'user.name=me', '-c', 'user.email=me@localhost']
        command = ['git', '-C', tmp_path, *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    file = tmp_path / 'timing.py'
    file.write_text('')
    monkeypatch.setattr(timing, '__file__', str(file))
    git('init', '-q')
    git('add', '.')
    git('commit', '-q', '-m', 'first')
    return git


def test_commit(checkout, tmp_path):
    name = checkout('rev-parse', '--short', 'HEAD')
    (tmp_path / 'untracked').touch()
    assert commit() == name
    (tmp_path / 'timing.py').write_text('changed')
    assert commit() == f'{name}+'


def test_commit_outside_git(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, '__file__', str(tmp_path / 'timing.py'))
    monkeypatch.delenv('KAT_MM_COMMIT', raising=False)
    assert commit() == 'unknown'
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


def test_choose_device():
    assert choose_device('cpu') == CPU
    assert choose_device(None).type == ('cuda' if torch.cuda.is_available() else 'cpu')


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('gpu', '--device gpu: unknown; use cuda or cpu'),
        ('meta', '--device meta: benchmarks run on cuda or cpu'),
        ('cuda:99', r'--device cuda:99: torch finds \d+ GPUs; use --device cpu'),
    ],
)
def test_devices_that_are_not_there(name, message):
    with pytest.raises(ConfigError, match=message):
        choose_device(name)


@pytest.mark.parametrize('text', ['0', '-1', '1.5', 'many', ''])
def test_counts_start_at_one(text):
    assert positive('12') == 12
    with pytest.raises(argparse.ArgumentTypeError, match=f'from 1 on, got {text!r}'):
        positive(text)


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


def test_progress_is_silent_where_nobody_looks(capsys):
    with progress('working', 2) as advance:
        advance()
        advance()
    assert capsys.readouterr() == ('', '')
