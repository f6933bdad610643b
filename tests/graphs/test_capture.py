"""CUDA graphs against the same computations without them, on a GPU."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from kat_mm.graphs import graph_parts
from kat_mm.models.block import DropPath

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures('gpu')]


class Net(nn.Module):
    """What backbones and heads have: norms of both kinds, random masks, a frozen part."""

    def __init__(self, dropout=0.3):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.drop = nn.Dropout2d(dropout)
        self.frozen = nn.Conv2d(16, 16, 1).requires_grad_(False)
        self.mix = nn.Conv2d(16, 8, 3, padding=1)
        self.path = DropPath(0.5 if dropout else 0.0)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = self.frozen(self.drop(F.gelu(self.norm(self.stem(x)))))
        return self.mix(x), (x + self.path(x)).mean((1, 2, 3))


def make(dropout=0.3, **optimizer):
    torch.manual_seed(0)
    net = Net(dropout).cuda()
    parameters = [p for p in net.parameters() if p.requires_grad]
    return net, torch.optim.AdamW(parameters, lr=1e-2, fused=True, **optimizer)


def train(
    net, optimizer, steps=9, accumulate=1, autocast=True, sizes=(16,), clip=None, to_none=True
):
    """Trains on random images of sizes in turn; returns the losses."""
    losses = []
    generator = torch.Generator('cuda').manual_seed(1)
    for step in range(steps):
        torch.manual_seed(step)  # of masks, as a hook of the runs does
        size = sizes[step % len(sizes)]
        x = torch.randn(4, 3, size, size, device='cuda', generator=generator)
        with torch.autocast('cuda', torch.bfloat16, enabled=autocast):
            maps, means = net(x)
        loss = maps.float().square().mean() + means.float().mean()
        loss.backward()
        losses.append(loss.detach())
        if (step + 1) % accumulate == 0:
            if clip:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=to_none)
    return losses


def graphed(net, warmup=3):
    return graph_parts(nn.ModuleDict({'net': net}), ['net'], warmup)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'autocast': False},
        {'accumulate': 3},
        {'accumulate': 3, 'to_none': False},
        {'clip': 0.1},
        {'to_none': False},
        {'sizes': (16, 12), 'steps': 16},
        {'sizes': (16, 12), 'steps': 16, 'accumulate': 2},
    ],
)
def test_weights_and_statistics_are_those_without_graphs_bit_by_bit(options):
    results = []
    for graphs in (False, True):
        net, optimizer = make()
        parts = graphed(net) if graphs else None
        losses = train(net, optimizer, **options)
        results.append((losses, net.state_dict()))
        if parts:
            assert len(parts.parts[0].captures) == len(options.get('sizes', (16,)))
            assert parts.held_bytes() > 0
            parts.release()
    (expected, wanted), (losses, found) = results
    assert torch.equal(torch.stack(losses), torch.stack(expected))
    assert_same(found, wanted)
    assert found['norm.num_batches_tracked'].item() == len(losses)


def test_masks_differ_from_call_to_call():
    net, _ = make()
    graphed(net, warmup=1)
    x = torch.ones(4, 3, 8, 8, device='cuda')
    results = []
    for _ in range(4):
        maps, means = net(x)
        results.append(maps.detach().clone())
        (maps.sum() + means.sum()).backward()
    assert not any(torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])


def test_inference_and_training_take_turns():
    results = []
    for graphs in (False, True):
        net, optimizer = make()
        if graphs:
            parts = graphed(net, warmup=1)
        outputs = []
        for _ in range(4):
            train(net.train(), optimizer, steps=3)
            net.eval()
            with torch.no_grad():
                outputs += [net(torch.ones(2, 3, 8, 8, device='cuda'))[0] for _ in range(2)]
        results.append((outputs, net.state_dict()))
    for found, expected in zip(results[1][0], results[0][0], strict=True):
        assert torch.equal(found, expected)
    assert_same(results[1][1], results[0][1])
    assert len(parts.parts[0].captures) == 2


def test_two_calls_before_a_backward_pass():
    results = []
    for graphs in (False, True):
        net, _ = make(dropout=0.0)
        if graphs:
            graphed(net, warmup=1)
        x, y = (torch.randn(2, 3, 8, 8, device='cuda') for _ in range(2))
        for _ in range(3):
            net.zero_grad()
            (net(x)[0].square().sum() + net(y)[0].sum()).backward()
        results.append([p.grad for p in net.parameters() if p.grad is not None])
        torch.manual_seed(0)
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_call_is_differentiated_once():
    net, _ = make(dropout=0.0)
    graphed(net, warmup=1)
    x = torch.randn(2, 3, 8, 8, device='cuda')
    for _ in range(2):
        loss = net(x)[0].sum()
        loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match='differentiated once'):
        loss.backward()


@pytest.mark.parametrize('grad', [False, True])
def test_a_capture_that_fails_leaves_all_as_it_was(caplog, grad):
    caplog.set_level(logging.WARNING, 'kat_mm')

    class Reads(Net):
        def forward(self, x):
            maps, means = super().forward(x)
            return maps * (2 if means.sum().item() > 0 else 1), means

    torch.manual_seed(0)
    net = Reads().cuda()
    graphed(net, warmup=1)
    stream = torch.cuda.current_stream()
    with torch.set_grad_enabled(grad):
        for i in range(4):
            maps, _ = net(torch.ones(2, 3, 8, 8, device='cuda'))
            assert net.norm.num_batches_tracked.item() == i + 1
    assert 'net runs without CUDA graphs' in caplog.text
    assert torch.cuda.current_stream() == stream
    assert not torch.cuda.is_current_stream_capturing()
    if grad:
        maps.sum().backward()
    torch.rand(3, device='cuda').sum().item()


def test_recomputation_runs_without(caplog):
    class Recomputes(Net):
        with_cp = True

        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    torch.manual_seed(0)
    net = Recomputes().cuda()
    graphed(net, warmup=1)
    train(net, torch.optim.SGD(net.parameters(), 0.1), steps=3)
    assert 'with_cp=True' in caplog.text


def test_parameters_of_elsewhere_are_found(caplog):
    scale = nn.Parameter(torch.ones(1, device='cuda'))

    class Borrows(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            return self.linear(x) * scale

    net = Borrows().cuda()
    graphed(net, warmup=1)
    for _ in range(3):
        net(torch.ones(2, 3, device='cuda')).sum().backward()
    assert scale.grad is not None
    assert '1 parameters that are no part of it' in caplog.text


def test_gradients_of_inputs():
    results = []
    for graphs in (False, True):
        net, _ = make(dropout=0.0)
        if graphs:
            graphed(net, warmup=1)
        for _ in range(3):
            x = torch.ones(2, 3, 8, 8, device='cuda', requires_grad=True)
            net(2 * x)[0].square().sum().backward()
        results.append(x.grad)
    assert torch.equal(*results)


def test_deterministic_algorithms(monkeypatch):
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    torch.use_deterministic_algorithms(True)
    try:
        results = []
        for graphs in (False, True):
            net, optimizer = make()
            if graphs:
                graphed(net)
            train(net, optimizer)
            results.append(net.state_dict())
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(*results)


def test_gradients_that_are_one_tensor_are_clipped_once():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.ones(4)) for _ in range(2))

        def forward(self, x):
            return x * 3 + self.a + self.b

    results = []
    for graphs in (False, True):
        net = Sum().cuda()
        if graphs:
            graphed(net, warmup=1)
        for _ in range(3):
            net.zero_grad()
            net(torch.ones(4, device='cuda')).square().sum().backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        results.append([p.grad for p in net.parameters()])
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)


def test_gradients_outlive_later_calls():
    """Until an update, whatever else runs by graphs of the same memory."""
    results = []
    for graphs in (False, True):
        net, _ = make(dropout=0.0)
        if graphs:
            graphed(net, warmup=1)
        sizes = (8, 8, 8, 12, 12, 8, 12, 8)
        for size in sizes:
            maps, means = net(torch.ones(2, 3, size, size, device='cuda'))
            (maps.sum() + means.sum()).backward()
            with torch.no_grad():
                net(torch.ones(3, 3, size, size, device='cuda'))
        results.append([p.grad for p in net.parameters() if p.grad is not None])
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)
