"""Networks with the autograd nodes in C++ and without: the same training, fewer nodes."""

from collections import Counter

import pytest
import torch

from kat_mm.models import KAT
from kat_mm.rational import cpp_autograd

ARCH = dict(embed_dims=32, num_heads=2, num_layers=3, feedforward_channels=64, layer_scale=0.5)
WINDOWS = dict(window_size=3, global_blocks=(1,))


@pytest.fixture(autouse=True)
def library():
    if not cpp_autograd.is_used():
        pytest.skip('needs the autograd nodes in C++')


def make(device, **kwargs):
    torch.manual_seed(0)
    return KAT(ARCH, 40, patch=8, drop_path_rate=0.2, **kwargs).to(device).train()


def train(model, device, on, steps=6):
    """Trains with autocast; returns the losses and the last gradients."""
    images = torch.linspace(-2, 2, 2 * 3 * 40 * 64, device=device).view(2, 3, 40, 64).sin()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    torch.manual_seed(1)
    losses = []
    with cpp_autograd.switched(on):
        for _ in range(steps):
            with torch.autocast(device, torch.bfloat16):
                [y] = model(images)
            loss = (y.float() - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return torch.stack(losses), [p.grad for p in model.parameters()]


@pytest.mark.parametrize('options', [{}, WINDOWS, {**WINDOWS, 'rel_pos': True}])
@pytest.mark.parametrize('with_cp', [False, True])
def test_training_is_the_same(device, options, with_cp):
    kwargs = dict(attention=dict(type='softmax', **options), with_cp=with_cp)
    losses, grads = train(make(device, **kwargs), device, on=True)
    expected, expected_grads = train(make(device, **kwargs), device, on=False)
    assert losses[-1] < losses[0]
    if device == 'cpu':
        assert torch.equal(losses, expected)
        assert all(torch.equal(p, q) for p, q in zip(grads, expected_grads, strict=True))
    else:  # flash attention's gradients are sums in any order
        torch.testing.assert_close(losses, expected, rtol=1e-3, atol=1e-4)
        for p, q in zip(grads, expected_grads, strict=True):
            assert (p - q).norm() <= 0.05 * q.norm() + 1e-5


def test_inference_is_the_same(device):
    model = make(device).eval()
    images = torch.randn(2, 3, 48, 40, device=device)
    for autocast in (False, True):
        results = []
        for on in (True, False):
            with (
                cpp_autograd.switched(on),
                torch.no_grad(),
                torch.autocast(device, torch.bfloat16, enabled=autocast),
            ):
                results.append(model(images)[0])
        assert torch.equal(*results)


def nodes(y):
    """The numbers of the nodes behind y by their kinds, without those of the parameters."""
    found, todo = set(), [y.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo += [node for node, _ in node.next_functions]
    kinds = Counter(node.name().rpartition('::')[2].rstrip('0') for node in found)
    del kinds['AccumulateGrad']
    return kinds


def test_a_block_has_few_nodes(device):
    block = make(device).blocks[0]
    x = torch.randn(2, 15, 32, device=device, requires_grad=True)
    counts = []
    for on in (True, False):
        with cpp_autograd.switched(on), torch.autocast(device, torch.bfloat16):
            counts.append(nodes(block(x, (3, 5))))
    assert counts[0]['LinearBackward'] == 4
    rationals = counts[0]['RationalBackward'], counts[0]['LayerNormRationalBackward']
    assert rationals == ((2, 0) if device == 'cpu' else (1, 1))
    assert counts[0].total() <= 0.6 * counts[1].total()
