"""Weights that are replaced or move: what runs by graphs goes with them."""

import pytest
import torch
from stand_ins import Frozen, graphed, runs
from torch import nn

from kat_mm.graphs import graph_parts


class Counts(nn.Module):
    """A module whose buffer is another tensor after each call."""

    def __init__(self):
        super().__init__()
        self.register_buffer('count', torch.ones(1))

    def forward(self, x):
        self.count = self.count + 1
        return x * self.count


@pytest.mark.usefixtures('without_gpu')
def test_weights_that_move_make_new_graphs_and_then_none(caplog):
    linear = nn.Linear(3, 2)
    function = graphed(linear)
    for round_ in range(4):
        for _ in range(3):
            function(torch.ones(4, 3))
        assert runs(function) == ([1] if round_ < 3 else [])
        linear.weight.data = linear.weight.data.clone()
    assert 'again and again' in caplog.text


@pytest.mark.parametrize(
    'change',
    [
        lambda linear, new: setattr(linear, 'weight', nn.Parameter(new)),
        lambda linear, new: linear.load_state_dict({'weight': new}, assign=True),
        lambda linear, new: linear.register_parameter('weight', nn.Parameter(new)),
    ],
)
@pytest.mark.usefixtures('without_gpu')
def test_weights_that_are_replaced_are_used(change):
    linear = nn.Linear(3, 2, bias=False)
    function = graphed(linear, capture=Frozen)
    x = torch.ones(4, 3)
    for value in (1.0, 2.0):
        change(linear, torch.full((2, 3), value))
        for _ in range(5):
            assert torch.equal(function(x), torch.full((4, 2), 3 * value))
        assert runs(function) == [3]


@pytest.mark.usefixtures('without_gpu')
def test_buffers_and_modules_that_are_replaced_are_used():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    function = graphed(model, capture=Frozen)
    x = torch.ones(4, 3)
    for change in (
        lambda: setattr(model[1], 'running_mean', torch.ones(2)),
        lambda: model.register_module('0', nn.Linear(3, 2)),
        lambda: model[0].register_parameter('bias', None),
    ):
        change()
        for _ in range(5):
            assert torch.equal(function(x), model(x))
        assert runs(function) == [3]


@pytest.mark.usefixtures('without_gpu')
def test_parameters_of_modules_that_come_later_count():
    model = nn.Sequential(nn.Identity())
    function = graphed(model)
    model[0] = nn.Linear(3, 2)
    for frozen in (False, True):
        model.requires_grad_(not frozen)
        for _ in range(3):
            function(torch.ones(4, 3))
    assert runs(function) == [1, 1]


@pytest.mark.usefixtures('without_gpu')
def test_a_buffer_that_a_call_replaces_goes_on(caplog):
    function = graphed(Counts(), capture=Frozen)
    results = [function(torch.ones(1)).item() for _ in range(6)]
    assert results == [2, 3, 4, 5, 6, 7]
    assert not function.captures
    assert caplog.text.count('without CUDA graphs: Counts replaces its buffer count') == 1


@pytest.mark.usefixtures('without_gpu')
def test_a_capture_that_fails_replaces_no_buffer():
    class Fails(Frozen):
        def __init__(self, *args):
            super().__init__(*args)
            raise RuntimeError('why')

    function = graphed(Counts(), capture=Fails)
    assert [function(torch.ones(1)).item() for _ in range(6)] == [2, 3, 4, 5, 6, 7]


@pytest.mark.gpu
@pytest.mark.usefixtures('gpu')
def test_weights_that_are_replaced_on_a_gpu():
    net = nn.Linear(3, 2).cuda()
    parts = graph_parts(nn.ModuleDict({'net': net}), ['net'], warmup=1)
    x = torch.ones(4, 3, device='cuda')
    for value in (1.0, 2.0):
        new = {name: torch.full_like(w, value) for name, w in net.state_dict().items()}
        net.load_state_dict(new, assign=True)
        for _ in range(3):
            net.zero_grad()
            y = net(x)
            y.sum().backward()
            assert torch.equal(y, torch.full_like(y, 4 * value))
            assert torch.equal(net.weight.grad, torch.full_like(net.weight, 4))
        assert len(parts.parts[0].captures) == 1


@pytest.mark.gpu
@pytest.mark.usefixtures('gpu')
def test_a_buffer_that_a_call_replaces_on_a_gpu(caplog):
    net = Counts().cuda()
    graph_parts(nn.ModuleDict({'net': net}), ['net'], warmup=1)
    x = torch.ones(1, device='cuda')
    assert [net(x).item() for _ in range(5)] == [2, 3, 4, 5, 6]
    assert 'Counts replaces its buffer count' in caplog.text


@pytest.mark.gpu
@pytest.mark.usefixtures('gpu')
def test_transforms_on_a_gpu():
    net = nn.Linear(3, 2).cuda()
    graph_parts(nn.ModuleDict({'net': net}), ['net'], warmup=1)
    x = torch.ones(4, 3, device='cuda')
    for _ in range(3):
        net(x).sum().backward()
    found = torch.func.grad(lambda x: net(x).square().sum())(x)
    y = x.clone().requires_grad_()
    torch.testing.assert_close(found, torch.autograd.grad(net(y).square().sum(), y)[0])
    torch.testing.assert_close(torch.func.vmap(net)(x), net(x))
