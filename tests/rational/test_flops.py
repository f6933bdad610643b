"""Floating-point operations that torch's FlopCounterMode counts of the ops."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kat_mm.rational import GroupRational

X = (2, 5, 16)  # 160 elements
FORWARD, GRAD_X, TERMS = 21, 39, 19  # for m = 5 and n = 4


def count(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize(('frozen', 'backward'), [(False, GRAD_X + TERMS), (True, GRAD_X)])
def test_forward_and_backward(frozen, backward):
    layer = GroupRational(channel_dim=-1).requires_grad_(not frozen)
    x = torch.randn(X, requires_grad=True)
    assert count(lambda: layer(x)) == 160 * FORWARD
    assert count(lambda: layer(x).sum().backward()) == 160 * (FORWARD + backward)


def test_layer_norm_and_rational_in_one():
    """As much as the two ops apart, of which torch counts the second."""
    norm, layer = nn.LayerNorm(16), GroupRational(channel_dim=-1)
    inputs = norm.weight, norm.bias, layer.numerator, layer.denominator
    x = torch.randn(X, requires_grad=True)
    fused = torch.ops.kat_mm.layer_norm_rational
    assert count(lambda: fused(x, *inputs, 1e-5)) == 160 * FORWARD
    apart = count(lambda: layer(norm(x)).sum().backward())
    assert count(lambda: fused(x, *inputs, 1e-5)[0].sum().backward()) == apart > 160 * FORWARD


@pytest.mark.parametrize('first', ['kat_mm.rational', 'torch.utils.flop_counter'])
def test_whatever_is_imported_first(first):
    code = f"""
import torch, {first}, kat_mm.rational
import sys
assert ('torch.utils.flop_counter' in sys.modules) == {first != 'kat_mm.rational'}
from torch.utils.flop_counter import flop_registry
assert torch.ops.kat_mm.rational_backward in flop_registry
"""
    subprocess.run([sys.executable, '-c', code], check=True)
