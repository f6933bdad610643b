"""The linear layer as one node against torch's."""

import copy
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, vmap

from kat_mm.rational import cpp_autograd
from kat_mm.rational.linear import linear

SHAPES = [(3, 5, 16), (7, 16), (2, 3, 4, 16), (1, 1, 16), (0, 5, 16)]


@pytest.fixture(autouse=True)
def library():
    if not cpp_autograd.is_used():
        pytest.skip('needs the autograd nodes in C++')


def make(device='cpu', bias=True, dtype=torch.float32):
    return nn.Linear(16, 24, bias, device=device, dtype=dtype)


def plain(layer, x):
    return cpp_autograd.library.linear(x, layer.weight, layer.bias)


def partly_frozen(learn, device='cpu'):
    """A layer and an x of which some learn, and those."""
    layer = make(device)
    layer.weight.requires_grad_(learn[1])
    layer.bias.requires_grad_(learn[2])
    x = torch.randn(3, 5, 16, device=device, requires_grad=learn[0])
    return layer, x, [t for t in (x, *layer.parameters()) if t.requires_grad]


def either(function):
    """What the function gives with torch's layer and with the node."""
    return [function(call) for call in (torchs, linear)]


def results(function, layer, x, autocast=None):
    """The value and the gradients of what wants one."""
    x = x.detach().clone().requires_grad_(x.requires_grad)
    device = x.device.type
    with torch.autocast(device, autocast or torch.bfloat16, enabled=autocast is not None):
        y = function(x, layer)
    wanted = [t for t in (x, *layer.parameters()) if t.requires_grad]
    return y.detach(), *torch.autograd.grad(y.float().sin().sum(), wanted)


def torchs(x, layer):
    return layer(x)


def assert_same_bits(layer, x, **kwargs):
    got, want = (results(f, layer, x, **kwargs) for f in (linear, torchs))
    assert [t.dtype for t in got] == [t.dtype for t in want]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(got, want, strict=True))


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('autocast', [None, torch.bfloat16, torch.float16])
def test_has_the_bits_of_torchs(device, shape, bias, autocast):
    layer = make(device, bias)
    x = torch.randn(shape, device=device, requires_grad=True)
    assert_same_bits(layer, x, autocast=autocast)
    if autocast:  # as behind an op that writes autocast's dtype
        assert_same_bits(layer, x.detach().to(autocast).requires_grad_(), autocast=autocast)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(device, dtype):
    x = torch.randn(3, 5, 16, device=device, dtype=dtype, requires_grad=True)
    assert_same_bits(make(device, dtype=dtype), x)


def test_memory_that_is_not_contiguous(device):
    layer = make(device)
    x = torch.randn(16, 3, 5, device=device)
    for view in (x.permute(1, 2, 0), x.permute(2, 1, 0)[::2]):
        got, want = (results(f, layer, view.requires_grad_()) for f in (linear, torchs))
        for ours, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('frozen', ['x', 'weight', 'bias', 'layer'])
@pytest.mark.parametrize('autocast', [None, torch.bfloat16])
def test_frozen_arguments(device, frozen, autocast):
    layer = make(device)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(frozen not in (name, 'layer'))
    x = torch.randn(3, 5, 16, device=device, requires_grad=frozen != 'x')
    assert_same_bits(layer, x, autocast=autocast)


def test_the_node_has_a_name(device):
    layer, x = make(device), torch.randn(3, 16, device=device)
    y = linear(x, layer)
    assert type(y.grad_fn).__name__ == 'LinearBackward'
    with torch.no_grad():
        assert linear(x, layer).grad_fn is None


@pytest.mark.parametrize('enabled', [True, False])
def test_casts_of_weights_are_kept_as_torch_keeps_them(device, enabled):
    """Without gradients weights are cast once in a context, also if torch's layer comes first."""
    layer, x = make(device), torch.randn(3, 16, device=device)
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, cache_enabled=enabled):
        for functions in ((torchs, linear, linear), (linear, torchs)):
            with torch.profiler.profile() as profile:
                for function in functions:
                    function(x, layer)
            casts = sum(event.name == 'aten::_to_copy' for event in profile.events())
            kept = 2 if enabled else 0  # weight and bias; x is cast anew
            assert casts == len(functions) + (
                (0 if functions[0] is linear else kept) if enabled else 2 * len(functions)
            )


def test_a_weight_with_two_uses_in_a_context_gets_both_gradients(device):
    layer, x = make(device), torch.randn(3, 16, device=device)
    sums = []
    for first, second in ((linear, torchs), (torchs, linear), (torchs, torchs)):
        layer.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            y = first(x, layer) + second(2 * x, layer)
        y.float().sum().backward()
        sums.append(layer.weight.grad.clone())
    torch.testing.assert_close(sums[0], sums[2], rtol=0.02, atol=0.02)
    torch.testing.assert_close(sums[1], sums[2], rtol=0.02, atol=0.02)


def penalty(function, layer, x, autocast):
    x = x.detach().clone().requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        y = function(x, layer).float().sin().sum()
    first = torch.autograd.grad(y, [x, layer.weight], create_graph=True)
    return torch.autograd.grad(sum(t.square().sum() for t in first), [x, *layer.parameters()])


@pytest.mark.parametrize('autocast', [False, True])
def test_double_backward(device, autocast):
    layer, x = make(device), torch.randn(3, 5, 16, device=device)
    got, want = (penalty(f, layer, x, autocast) for f in (linear, torchs))
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == theirs.dtype == torch.float32
        tolerance = 0.02 if autocast else 1e-5
        torch.testing.assert_close(
            ours, theirs, rtol=tolerance, atol=tolerance * theirs.abs().max().item()
        )


def test_gradcheck(device):
    weight, bias = torch.randn(4, 3), torch.randn(4)
    tensors = [torch.randn(2, 3), weight, bias]
    tensors = [t.to(device, torch.float64).requires_grad_() for t in tensors]

    def function(*tensors):
        y = cpp_autograd.library.linear(*tensors)
        return nn.functional.linear(*tensors) if y is None else y

    assert gradcheck(function, tensors, check_batched_grad=True)
    assert gradgradcheck(function, tensors, check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize('transform', [grad, hessian, jacfwd, vmap])
def test_transforms(transform):
    layer, x = make(dtype=torch.float64), torch.randn(3, 16, dtype=torch.float64)
    got, want = (
        transform(lambda x, f=f: f(x[None], layer).sin().sum())(x) for f in (linear, torchs)
    )
    torch.testing.assert_close(got, want)


def test_what_is_not_plain_is_left_to_torch():
    layer, x = make(), torch.randn(3, 16)
    assert plain(layer, x) is not None
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        assert plain(layer, x) is None
    with forward_ad.dual_level():
        assert plain(layer, forward_ad.make_dual(x, x)) is None
    for other in (x.double(), x.to('meta'), x[0], torch.randn(3, 15), x.long()):
        assert plain(layer, other) is None
    with torch.autocast('cpu', torch.bfloat16):
        assert plain(layer.double(), x.double()) is None
    with cpp_autograd.switched(False):
        assert plain(layer.float(), x) is None


CHANGES = {
    'twice': lambda y: y.mul_(2),
    'relu': lambda y: y.relu_(),
    'part': lambda y: y[:, 0].zero_(),
    'item': lambda y: y.__setitem__((slice(None), 0), 0),
}


@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('autocast', [False, True])
def test_changes_in_place_of_the_result(device, change, shape, autocast):
    layer, x = make(device), torch.randn(shape, device=device)

    def gradients(call):
        leaf = x.clone().requires_grad_()
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            y = call(leaf, layer)
        CHANGES[change](y)
        return torch.autograd.grad(y.float().square().sum(), [leaf, *layer.parameters()])

    for want, got in zip(*either(gradients), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize('shape', SHAPES)
def test_changes_that_autograd_does_not_see(device, shape):
    layer, x = make(device), torch.randn(shape, device=device)
    y = linear(x, layer)
    with torch.no_grad():
        y.mul_(2)
    y.sum().backward()
    torch.testing.assert_close(layer.bias.grad, torch.full((24,), float(x.numel() // 16)).to(x))
    torch.testing.assert_close(layer.weight.grad, x.reshape(-1, 16).sum(0).expand(24, 16))


# Which of x, the weight and the bias learn; the last is none.
LEARN = [(x, w, b) for x in (True, False) for w in (True, False) for b in (True, False)][:-1]


@pytest.mark.parametrize('learn', LEARN)
@pytest.mark.parametrize('changed', ['x', 'weight'])
def test_what_no_gradient_needs_may_change(device, learn, changed):
    needed = learn[1] if changed == 'x' else learn[0]

    def gradients(call):
        torch.manual_seed(1)
        layer, x, wanted = partly_frozen(learn, device)
        y = call(x, layer)
        with torch.no_grad():
            (x if changed == 'x' else layer.weight).mul_(3)
        if needed:
            with pytest.raises(RuntimeError, match='modified by an inplace operation'):
                y.sum().backward()
            return []
        return torch.autograd.grad(y.sin().sum(), wanted)

    for want, got in zip(*either(gradients), strict=True):
        assert torch.equal(got, want)


def test_frozen_layers_keep_no_activations(device):
    layer = make(device).requires_grad_(False)
    x = torch.randn(3, 5, 16, device=device, requires_grad=True)
    hidden = 2 * x
    alive = weakref.ref(hidden)
    y = linear(hidden, layer)
    del hidden
    assert alive() is None
    y.sum().backward()
    torch.testing.assert_close(x.grad, (2 * layer.weight.sum(0)).expand(3, 5, 16))


@pytest.mark.parametrize('learn', LEARN)
@pytest.mark.parametrize('autocast', [False, True])
def test_second_derivatives_of_frozen_layers(device, learn, autocast):
    layer, x, wanted = partly_frozen(learn, device)

    def gradients(call):
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            y = call(x, layer)
        first = torch.autograd.grad(y.float().sin().sum(), wanted, create_graph=True)
        second = sum(t.square().sum() for t in first)
        return *first, *torch.autograd.grad(second, wanted)

    tolerance = 0.02 if autocast else 1e-5
    for want, got in zip(*either(gradients), strict=True):
        atol = tolerance * want.abs().max().item()
        torch.testing.assert_close(got, want, rtol=tolerance, atol=atol)


def test_weights_of_inference_mode(device):
    with torch.inference_mode():
        layer = make(device)
    layer.bias = nn.Parameter(torch.zeros(24, device=device))
    x = torch.randn(3, 5, 16, device=device)
    linear(x, layer).sum().backward()
    torch.testing.assert_close(layer.bias.grad, torch.full_like(layer.bias, 15))


@pytest.mark.parametrize('sizes', [(0, 4), (4, 0), (0, 0)])
def test_no_features(device, sizes):
    layer = nn.Linear(*sizes, device=device)
    x = torch.randn(2, 3, sizes[0], device=device, requires_grad=True)
    assert plain(layer, x) is None
    assert_same_bits(layer, x)


class Stop(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


@pytest.mark.parametrize('compiled', [False, True])
def test_a_gradient_that_is_not_there(device, compiled):
    layer, x = make(device), torch.randn(3, 16, device=device, requires_grad=True)
    y = Stop.apply(linear(x, layer)).sum()
    if compiled:
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend='eager')):
            y.backward()
    else:
        y.backward()
    assert [t.grad for t in (x, *layer.parameters())] == [None] * 3


@pytest.mark.parametrize('kind', ['forward_pre', 'forward', 'full_backward_pre', 'full_backward'])
def test_hooks_of_the_layer_are_called(kind):
    layer, seen = make(), []
    getattr(layer, f'register_{kind}_hook')(lambda *args: seen.append(args[0]))
    linear(torch.randn(3, 16, requires_grad=True), layer).sum().backward()
    assert seen == [layer]


def test_other_layers_are_called_as_they_are():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    x = torch.randn(3, 16)
    doubled = Doubled(16, 24)
    pruned = nn.utils.parametrizations.weight_norm(make())
    for layer in (doubled, pruned, nn.Identity()):
        assert torch.equal(linear(x, layer), layer(x))


@pytest.mark.parametrize('name', ['weight', 'bias'])
def test_weights_that_are_no_parameters(name):
    x, layer = torch.randn(3, 16), make()
    buffer = torch.randn_like(getattr(layer, name))
    delattr(layer, name)
    layer.register_buffer(name, buffer)
    assert torch.equal(linear(x, layer), layer(x))

    delattr(layer, name)
    setattr(layer, name, buffer)
    assert torch.equal(linear(x, layer), layer(x))


def test_a_forward_of_the_instance_is_called():
    layer, x = make(), torch.randn(3, 16)
    own = layer.forward
    layer.forward = lambda x: 2 * own(x)
    assert torch.equal(linear(x, layer), layer(x))
    del layer.forward
    assert torch.equal(linear(x, layer), own(x))


def test_functional_calls():
    layer, x = nn.Sequential(make()), torch.randn(3, 16)
    parameters = {f'0.{k}': 2 * v.detach() for k, v in layer[0].named_parameters()}

    class Holder(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return linear(x, self.inner[0])

    named = {f'inner.{k}': v for k, v in parameters.items()}
    got = functional_call(Holder(layer), named, x)
    torch.testing.assert_close(got, functional_call(layer, parameters, x))


def test_traces_and_compilation_see_torchs_layer():
    layer = make()

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = layer

        def forward(self, x):
            return linear(x, self.inner)

    holder, x = Holder(), torch.randn(3, 16)
    traced = torch.fx.symbolic_trace(holder)
    assert [node.target for node in traced.graph.nodes if node.op == 'call_module'] == ['inner']
    exported = torch.export.export(holder, (x,))
    assert torch.ops.aten.linear.default in {node.target for node in exported.graph.nodes}
    assert 'aten::linear' in str(torch.jit.trace(holder, x).inlined_graph)


def test_trains_as_torchs(device):
    model = nn.Sequential(make(device), nn.Linear(24, 1, device=device))
    twin = copy.deepcopy(model)
    x = torch.randn(64, 16, device=device)
    losses = []
    for network, call in ((model, linear), (twin, torchs)):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
        losses.append([])
        for _ in range(20):
            with torch.autocast(device, torch.bfloat16):
                y = call(call(x, network[0]).relu(), network[1])
            loss = (y.float() - x.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]


def test_compiled_autograd():
    layer, x = make(), torch.randn(3, 16, requires_grad=True)
    want = torch.autograd.grad(layer(x).sum(), [x, *layer.parameters()])
    y = linear(x, layer).sum()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend='eager')):
        y.backward()
    for got, expected in zip([x.grad, *(p.grad for p in layer.parameters())], want, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize('learn', LEARN)
def test_compiled_autograd_of_frozen_layers(learn):
    layer, x, wanted = partly_frozen(learn)
    want = torch.autograd.grad(layer(x).sum(), wanted)
    y = linear(x, layer).sum()
    torch._dynamo.reset()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend='eager')):
        y.backward()
    assert all(torch.equal(t.grad, expected) for t, expected in zip(wanted, want, strict=True))


LONG_CHAIN = """
import torch
from kat_mm.rational import GroupRational, cpp_autograd
from kat_mm.rational.linear import linear
assert cpp_autograd.is_used()
layer, act = torch.nn.Linear(1, 1), GroupRational(1, channel_dim=-1)
for call in (lambda y: linear(y, layer), act):
    y = torch.zeros(1, 1)
    for _ in range(200_000):
        y = call(y)
    del y
print('freed')
"""


def test_a_very_long_chain_is_freed():
    """In a process of its own, as one that recurses ends it."""
    result = subprocess.run(
        [sys.executable, '-c', LONG_CHAIN], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == 'freed'
