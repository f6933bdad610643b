"""Trainings run side by side, break one by one, and go on where they were interrupted."""

import json
import re

import pytest

from kat_mm.benchmarking.studies import pool
from kat_mm.benchmarking.studies.runs import held, plan


def scores(runs):
    return {run.name: run.result()['mIoU'] for run in runs}


@pytest.fixture
def expected(study, tmp_path, resolve, train):
    """The scores of runs that nothing interrupts."""
    runs = plan(study, tmp_path / 'uninterrupted', resolve)
    train(runs)
    return scores(runs)


def test_all_are_trained_once(runs, train):
    reported = train(runs)
    assert {*reported} == {run.name for run in runs}
    assert len({*scores(runs).values()}) == len(runs)
    result = runs[0].result()
    assert reported[runs[0].name] == (result, '')
    assert 0 <= result['mIoU'] <= 1
    assert (result['step_ms'], result['peak_mib']) == (1250, 400)
    assert (result['nan'], result['attempts'], result['beside']) == (0, 1, 1)
    assert result['seconds'] > 0
    assert re.match(r'CPU, threads: \d+', result['device'])
    assert train(runs) == {}


def test_those_that_start_from_others_do(runs, train, expected):
    """The stand-in's scores depend on the weights that it starts with, and on each step."""
    train(runs, jobs=1)
    assert scores(runs) == expected
    tuned = next(run for run in runs if run.parent)
    assert f'load_from={tuned.parent.folder}/iter_4.pth' in tuned.settings()


@pytest.mark.parametrize('broken', ['kill@1', 'kill@3', 'late@4'])
def test_killed_runs_go_on_exactly(runs, train, expected, monkeypatch, broken):
    monkeypatch.setenv('BREAK', f'{broken}:')
    reported = train(runs)
    assert {result for result, _ in reported.values()} == {None}
    assert len(reported) == len(runs)  # those that start from others have failed with these
    monkeypatch.delenv('BREAK')
    train(runs)
    assert scores(runs) == expected
    attempts = {run.result()['attempts'] for run in runs if not run.parent}
    assert attempts == {1 if broken == 'late@4' else 2}  # that one was trained anew


def test_a_failed_run_stops_no_other(runs, train, monkeypatch):
    monkeypatch.setenv('BREAK', 'error@2:wide/seed1')
    reported = train(runs)
    failed = {name: reason for name, (result, reason) in reported.items() if result is None}
    assert {*failed} == {'small/wide, seed 1', 'small/tuned, seed 1'}
    assert 'RuntimeError: out of memory' in failed['small/wide, seed 1']
    assert '(exit status 1; ' in failed['small/wide, seed 1']
    assert failed['small/tuned, seed 1'] == 'it starts from small/wide, seed 1, which failed'


def test_divergence_is_a_result(runs, train, monkeypatch):
    monkeypatch.setenv('BREAK', 'nan@3:wide/seed0')
    reported = train(runs)
    result, _ = reported['small/wide, seed 0']
    assert result['nan'] == 1
    assert 'mIoU' not in result
    assert reported['small/tuned, seed 0'][0] is None
    assert sum(result is not None for result, _ in reported.values()) == 5


def test_no_process_outlives_the_limit(runs, train, expected, monkeypatch):
    started = []
    popen = pool.subprocess.Popen
    monkeypatch.setattr(
        pool.subprocess, 'Popen', lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
    )
    monkeypatch.setenv('BREAK', 'hang@2:')
    assert train(runs, seconds=0) == {}
    assert len(started) == 2
    assert all(process.returncode is not None for process in started)
    monkeypatch.delenv('BREAK')
    train(runs)
    assert scores(runs) == expected


def test_runs_are_spread_over_gpus(runs, train, monkeypatch):
    # Fake names: the stand-in only prints them.
    monkeypatch.setattr(pool, 'origin', lambda device: {'device': f'GPU {device.index}'})
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr(pool.os, 'sched_getaffinity', lambda process: range(17))
    train(runs, jobs=4, gpus=['5', '7'])
    assert {run.result()['device'] for run in runs} == {'GPU 0', 'GPU 1'}
    assert {run.result()['beside'] for run in runs} == {1}
    logs = {(run.folder / 'output.txt').read_text() for run in runs}
    assert logs == {'threads 4 gpu 5\n', 'threads 4 gpu 7\n'}


def test_what_another_process_trains_is_left_to_it(runs, train):
    with held(runs[0].folder):
        reported = train(runs)
    assert 'another process is training it in ' in reported[runs[0].name][1]
    assert reported[runs[1].name][0] is not None


def test_visible_gpus(monkeypatch):
    monkeypatch.setattr(pool.torch.cuda, 'device_count', lambda: 2)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    assert pool.find_gpus() == ['0', '1']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3,GPU-ab')
    assert pool.find_gpus() == ['3', 'GPU-ab']
    monkeypatch.setattr(pool.torch.cuda, 'device_count', lambda: 0)
    assert pool.find_gpus() == []


def test_results_are_whole_or_missing(runs, train):
    train(runs[:1])
    [path] = runs[0].folder.glob('result.json*')
    assert json.loads(path.read_text()) == runs[0].result()
