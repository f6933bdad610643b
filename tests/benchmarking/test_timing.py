"""Timing by turns."""

import time

import pytest
import torch

from kat_mm.benchmarking.timing import Spread, progress, spread, time_in_turns

CPU = torch.device('cpu')


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


def test_progress_is_silent_where_nobody_looks(capsys):
    with progress('working', 2) as advance:
        advance()
        advance()
    assert capsys.readouterr() == ('', '')
