"""Processes that are started together, and what becomes of them when one fails."""

import os
import signal
from functools import partial

import pytest
import torch
from torch import distributed

from kat_mm.benchmarking.processes import RankError, run_processes
from kat_mm.errors import ConfigError


def join():
    torch.set_num_threads(1)
    distributed.init_process_group('gloo')


def sum_of_ranks(rank, count, size):
    join()
    total = torch.full((size,), rank + 1)
    distributed.all_reduce(total)
    return rank, count, total.tolist()


def fail_alone(rank, count, how):
    """Rank 1 fails, while the other waits for it."""
    join()
    if rank == 1:
        if how == 'killed':
            os.kill(os.getpid(), signal.SIGKILL)
        raise {'user': ConfigError('batch 3: must be 2'), 'bug': KeyError('a bug')}[how]
    distributed.all_reduce(torch.zeros(1))


def test_each_rank_returns_what_it_computed():
    """Also much, for which a pipe has no room."""
    size = 30_000
    total = [1 + 2] * size
    found = run_processes(partial(sum_of_ranks, size=size), 2, 'sums')
    assert found == [(0, 2, total), (1, 2, total)]


@pytest.mark.parametrize(
    ('how', 'message', 'is_traced'),
    [
        ('user', 'tiny, rank 1: batch 3: must be 2', False),
        ('bug', "tiny, rank 1: KeyError: 'a bug'", True),
        ('killed', 'tiny, rank 1: ended by SIGKILL', False),
    ],
)
def test_the_rank_that_is_the_cause_is_named(capfd, how, message, is_traced):
    with pytest.raises(RankError) as error:
        run_processes(partial(fail_alone, how=how), 2, 'tiny')
    assert str(error.value) == message
    assert ('in fail_alone' in capfd.readouterr().err) == is_traced
