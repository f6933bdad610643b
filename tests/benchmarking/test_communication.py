"""The share of time that goes to communication."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import DeviceType

from kat_mm.benchmarking import communication
from kat_mm.benchmarking.communication import communication_share, length_outside

POINTS = st.integers(0, 20)
INTERVALS = st.lists(st.tuples(POINTS, POINTS).map(lambda pair: tuple(sorted(pair))), max_size=6)


@given(INTERVALS, INTERVALS)
def test_length_outside_counts_what_is_covered_by_none(intervals, others):
    def covered(parts):
        return {i for start, end in parts for i in range(start, end)}

    assert length_outside(intervals, others) == len(covered(intervals) - covered(others))


def event(name, start, end, kind=DeviceType.CUDA, is_user_annotation=False):
    time_range = SimpleNamespace(start=start, end=end)
    return SimpleNamespace(
        name=name, time_range=time_range, device_type=kind, is_user_annotation=is_user_annotation
    )


CUDA_EVENTS = [
    event('gemm', 10, 40),
    event('ncclDevKernel_AllReduce_Sum_bf16_RING_LL', 30, 60),  # 20 alone
    event('Memcpy DtoH', 70, 75),
    event('ncclDevKernel_AllReduce_Sum_bf16_RING_LL', 80, 110),  # 30 alone
    event('nccl:all_reduce', 0, 200, is_user_annotation=True),
    event('cudaLaunchKernel', 0, 300, DeviceType.CPU),
]


class Profile:
    """Stands for torch's profiler, with events that a GPU would have."""

    def __init__(self, activities):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def events(self):
        return CUDA_EVENTS


def test_kernels_of_nccl_count_where_nothing_else_runs(monkeypatch):
    monkeypatch.setattr(communication, 'profile', Profile)
    monkeypatch.setattr(communication, 'synchronize', lambda device: None)
    calls = []
    share = communication_share(lambda: calls.append(1), torch.device('cuda'), 3)
    assert len(calls) == 3
    assert share == pytest.approx(50 / 100)


def test_a_step_alone_does_not_communicate():
    assert communication_share(lambda: torch.ones(100).sum(), torch.device('cpu')) == 0


def test_collectives_of_a_cpu_take_time(tmp_path):
    store = f'file://{tmp_path}/store'
    torch.distributed.init_process_group('gloo', init_method=store, rank=0, world_size=1)
    try:
        share = communication_share(
            lambda: torch.distributed.all_reduce(torch.ones(100_000)), torch.device('cpu')
        )
    finally:
        torch.distributed.destroy_process_group()
    assert 0 < share <= 1
