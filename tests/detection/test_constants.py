"""Numbers that are copied to a device once."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from kat_mm.detection.constants import constant


def test_numbers_are_copied_once(device):
    like = torch.zeros(2, dtype=torch.float64, device=device)
    found = constant([0.5, 2.0], like)
    assert found is constant((0.5, 2.0), like)
    assert found.dtype == torch.float64
    assert found.device == like.device
    assert found.tolist() == [0.5, 2.0]
    assert constant([0.5, 2.0], like, torch.int64).tolist() == [0, 2]


@pytest.mark.parametrize('first', ['fake', 'real'])
def test_fake_and_real_tensors_are_kept_apart(first):
    numbers = {'fake': [1.5, 7.25], 'real': [3.5, 9.25]}[first]
    if first == 'real':
        constant(numbers, torch.zeros(1))
    with FakeTensorMode():
        fake = constant(numbers, torch.zeros(1))
        assert isinstance(fake, FakeTensor)
        assert (torch.zeros(2) + fake).shape == (2,)
    real = constant(numbers, torch.zeros(1))
    assert type(real) is torch.Tensor
    assert (torch.zeros(2) + real).tolist() == numbers


def test_numbers_under_a_mode_that_only_looks_on():
    with FlopCounterMode(display=False):
        found = constant([11.5], torch.zeros(1))
    assert found.tolist() == [11.5]


def test_numbers_made_for_inference_take_part_in_training():
    with torch.inference_mode():
        found = constant([12.5], torch.zeros(1))
    assert not found.is_inference()
