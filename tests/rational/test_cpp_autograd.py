"""The autograd nodes in C++: the same bits as those in Python, and plain calls alone."""

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from oracle import coefficients
from torch import nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from kat_mm.rational import GroupRational, cpp_autograd, rational
from kat_mm.rational.layer_norm_rational import call_plain, layer_norm_rational

pytestmark = pytest.mark.skipif(
    os.environ.get(cpp_autograd.VARIABLE) == '0', reason='turned off in the environment'
)
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def library():
    assert cpp_autograd.is_used(), 'the autograd nodes in C++ are missing: build them first'
    return cpp_autograd.library


def layer(device='cpu', **kwargs):
    module = GroupRational(4, **{'channel_dim': -1, **kwargs})
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module.to(device)


def plain(module, x):
    """What the library computes of the call of a layer; None if it leaves it to Python."""
    return cpp_autograd.library.group_rational(
        x,
        module.weight_numerator,
        module.weight_denominator,
        module.num_groups,
        module.order,
        module.shared_numerator,
        module.channel_dim,
    )


def results(call, x, parameters, autocast=False, wants_x=True):
    """The value and the gradients of x and parameters."""
    x = x.detach().clone().requires_grad_(wants_x)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        y = call(x)
    wanted = [t for t in (x, *parameters) if t.requires_grad]
    return y.detach(), *torch.autograd.grad(y.float().sin().sum(), wanted)


def assert_same_bits(call, x, parameters, **kwargs):
    got = results(call, x, parameters, **kwargs)
    with cpp_autograd.switched(False):
        assert not cpp_autograd.is_used()
        want = results(call, x, parameters, **kwargs)
    assert [t.dtype for t in got] == [t.dtype for t in want]
    assert [t.stride() for t in got] == [t.stride() for t in want]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(got, want, strict=True))


LAYERS = [  # arguments of the layer, shape of x
    (dict(), (3, 5, 16)),
    (dict(shared_numerator=False), (3, 16)),
    (dict(order=(8, 4), channel_dim=1), (2, 8, 5)),
    (dict(init='identity', order=(1, 1), channel_dim=None), (2, 4, 3, 5)),
    (dict(channel_dim=None), (16,)),
    (dict(), (0, 16)),
]


@pytest.mark.parametrize(('kwargs', 'shape'), LAYERS)
@pytest.mark.parametrize('dtype', FLOATS)
@pytest.mark.parametrize('autocast', [False, True])
def test_has_the_bits_of_the_node_in_python(device, kwargs, shape, dtype, autocast):
    module = layer(device, **kwargs)
    if dtype == torch.float64:
        module.double()
    x = torch.randn(shape, device=device).to(dtype)
    is_cast_twice = autocast and dtype == torch.float16
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        assert (plain(module, x) is None) == is_cast_twice
    assert_same_bits(module, x, list(module.parameters()), autocast=autocast)


@pytest.mark.parametrize('frozen', ['x', 'weight_numerator', 'weight_denominator', 'both'])
def test_frozen_arguments(device, frozen):
    module = layer(device)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(frozen not in (name, 'both'))
    x = torch.randn(3, 16, device=device)
    assert_same_bits(module, x, list(module.parameters()), wants_x=frozen != 'x')


def test_memory_in_any_order(device):
    module = layer(device, channel_dim=1)
    x = torch.randn(2, 16, 3, 5, device=device)
    for each in (x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3), x[..., ::2]):
        assert_same_bits(module, each, list(module.parameters()))


def test_the_function_takes_it_too(device):
    a, b = (t.requires_grad_() for t in coefficients(4, device=device))
    x = torch.randn(3, 16, device=device)
    assert cpp_autograd.library.rational(x, a, b, -1) is not None
    assert_same_bits(lambda x: rational(x, a, b), x, [a, b])
    assert_same_bits(lambda x: rational(x, a[:, :3], b[:, ::2]), x, [a, b])  # strided coefficients


@pytest.mark.parametrize('autocast', [False, True])
def test_layer_norm_and_rational(device, autocast):
    norm, act = nn.LayerNorm(16).to(device), layer(device)
    nn.init.normal_(norm.weight)
    x = torch.randn(3, 5, 16, device=device)

    def call(x):  # on the CPU, where it is two ops, the node of the fused op alone
        return layer_norm_rational(x, norm, act) if x.is_cuda else call_plain(x, norm, act)

    parameters = [*norm.parameters(), *act.parameters()]
    if device == 'cuda':
        assert_same_bits(call, x, parameters, autocast=autocast)
        return
    got = results(call, x, parameters, autocast)
    want = results(lambda x: act(norm(x)), x, parameters, autocast)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_without_gradients_there_is_no_node(device):
    module, x = layer(device), torch.randn(3, 16, device=device)
    with torch.no_grad():
        assert plain(module, x).grad_fn is None
    with torch.inference_mode():
        assert plain(module, x).is_inference()
    assert plain(module.requires_grad_(False), x).grad_fn is None
    y = plain(module, x.requires_grad_())
    assert type(y.grad_fn).__name__ == y.grad_fn.name() == 'RationalBackward'
    assert y.requires_grad


class Subclass(torch.Tensor):
    pass


class Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Dispatches(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@contextmanager
def tangents(x):
    with forward_ad.dual_level():
        yield forward_ad.make_dual(x, x)


def seen_by(transform, module, x):
    """What the library computes within a transform of torch.func."""
    seen = []

    def function(x):
        seen.append(plain(module, x))
        return module(x).sum()

    transform(function)(x)
    return seen[0]


@pytest.mark.parametrize('transform', [torch.func.grad, torch.vmap, torch.func.jacfwd])
def test_transforms_are_left_to_python(transform):
    assert seen_by(transform, layer(), torch.randn(3, 16)) is None


def test_what_is_not_plain_is_left_to_python():
    module, x = layer(), torch.randn(3, 16)
    assert plain(module, x) is not None
    for mode in (Functions(), Dispatches()):
        with mode:
            assert plain(module, x) is None
    with tangents(x) as dual:
        assert plain(module, dual) is None
    z = torch.randn(3, 16, dtype=torch.complex64)
    for other in (
        x.as_subclass(Subclass),
        x.to('meta'),
        torch._efficientzerotensor(3, 16),
        z.conj().imag,  # negated lazily
        x.to_sparse(),
        x.long(),
        x.numpy(),
        torch.zeros(()),
        torch.zeros(3, 17),
    ):
        assert plain(module, other) is None
    assert plain(layer(channel_dim=None), torch.randn(2, 16, 4)) is None
    for dim in (2, -3, 2**80, True, 1.0):
        assert plain(layer(channel_dim=dim), x) is None
    assert plain(layer().half(), x) is None
    module.num_groups = 2  # of other shapes than the parameters
    assert plain(module, x) is None


def test_is_left_out_of_traces():
    module, x = nn.Sequential(layer()), torch.randn(3, 16)
    traced = torch.jit.trace(module, x)
    assert 'kat_mm::rational' in str(traced.inlined_graph)
    exported = torch.export.export(module, (x,))
    assert torch.ops.kat_mm.rational.default in {node.target for node in exported.graph.nodes}
    assert torch.equal(traced(x), module(x))
    assert torch.equal(exported.module()(x), module(x))


def test_subclasses_of_the_layer_compute_their_own_coefficients():
    class Doubled(GroupRational):
        @property
        def numerator(self):
            return 2 * super().numerator

    module, twin = layer(), Doubled(4, channel_dim=-1)
    twin.load_state_dict(module.state_dict())
    x = torch.randn(3, 16)
    torch.testing.assert_close(twin(x), 2 * module(x))


def test_parametrized_coefficients():
    module = layer()
    x = torch.randn(3, 16)
    expected = rational(x, 3 * module.numerator, module.denominator)

    class Tripled(nn.Module):
        def forward(self, weight):
            return 3 * weight

    nn.utils.parametrize.register_parametrization(module, 'weight_numerator', Tripled())
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('op', ['rational', 'layer_norm_rational'])
@pytest.mark.parametrize('shape', [(3, 5, 16), (3, 16)])
def test_changes_in_place_of_the_result(device, op, autocast, shape):
    norm, act = nn.LayerNorm(16).to(device), layer(device)
    x = torch.randn(shape, device=device)
    parameters = [*norm.parameters(), *act.parameters()] if '_' in op else [*act.parameters()]

    def call(x, hidden):
        y = plain(act, x) if op == 'rational' else call_plain(x, norm, act)
        assert not y._is_view()
        with torch.set_grad_enabled(not hidden):
            y.mul_(2)
        return y if hidden else y.relu_()

    def twin(x, hidden):
        y = act(x) if op == 'rational' else act(norm(x))
        return y if hidden else (2 * y).relu()

    for hidden in (False, True):
        sums = []
        for function in (call, twin):
            leaf = x.clone().requires_grad_()
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                y = function(leaf, hidden)
            sums.append(torch.autograd.grad(y.float().sum(), [leaf, *parameters]))
        for ours, theirs in zip(*sums, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_memory_is_freed_behind_backward():
    module, x = layer(), torch.randn(3, 16, requires_grad=True)
    y = plain(module, x)
    y.sum().backward(retain_graph=True)
    y.sum().backward()
    with pytest.raises(RuntimeError, match='backward through the graph a second time'):
        y.sum().backward()


@pytest.mark.parametrize('changed', ['x', 'weight_numerator'])
def test_changes_of_what_is_kept_are_errors(changed):
    module, x = layer(), torch.randn(3, 16, requires_grad=True)
    y = plain(module, x)
    with torch.no_grad():
        (x if changed == 'x' else module.weight_numerator).add_(1)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        y.sum().backward()


def test_hooks_of_the_node_and_of_saved_tensors():
    module, x = layer(), torch.randn(3, 16, requires_grad=True)
    packed, unpacked, seen = [], [], []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: packed.append(t) or len(packed) - 1, lambda i: unpacked.append(i) or packed[i]
    )
    with hooks:
        y = plain(module, x)
    assert [t.data_ptr() for t in packed] == [t.data_ptr() for t in (x, *module.parameters())]
    y.grad_fn.register_hook(lambda inputs, outputs: seen.append(len(inputs)))
    y.grad_fn.register_prehook(lambda outputs: (2 * outputs[0],))
    y.sum().backward()
    assert unpacked == [0, 1, 2]
    assert seen == [3]
    got = x.grad.clone()
    x.grad = None
    module(x).sum().backward()
    torch.testing.assert_close(got, 2 * x.grad)


@pytest.mark.parametrize('use_reentrant', [False, True])
def test_checkpoints(use_reentrant):
    module = nn.Sequential(nn.Linear(16, 16), layer())
    x = torch.randn(3, 16)
    grads = []
    for forward in (module, lambda x: checkpoint(module, x, use_reentrant=use_reentrant)):
        leaf = x.clone().requires_grad_()
        forward(leaf).sin().sum().backward()
        grads.append([leaf.grad, *(p.grad for p in module.parameters())])
        module.zero_grad()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*grads, strict=True))


def test_a_gradient_that_is_not_there_is_zero():
    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return None

    module, x = layer(), torch.randn(3, 16, requires_grad=True)
    Stop.apply(plain(module, x)).sum().backward()
    assert x.grad is not None
    assert not x.grad.any()


def test_anomalies_name_the_call():
    module, x = layer(), torch.randn(3, 16, requires_grad=True)
    with pytest.warns(UserWarning, match='Anomaly Detection has been enabled'):
        mode = torch.autograd.detect_anomaly()
    with mode:
        y = module(x)
        assert any('test_cpp_autograd' in line for line in y.grad_fn.metadata['traceback_'])
        with (
            pytest.warns(UserWarning, match='Error detected in RationalBackward'),
            pytest.raises(RuntimeError, match="'RationalBackward' returned nan"),
        ):
            y.backward(torch.full_like(y, torch.nan))


def test_errors_of_python_pass_through_backward():
    """Of what Python computes in the place of the kernel: a kernel that cannot, in its words."""

    class Refuses(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.kat_mm.rational_backward.default:
                raise LookupError('no such kernel')
            return func(*args, **(kwargs or {}))

    y = plain(layer(), torch.randn(3, 16))
    with Refuses(), pytest.raises(LookupError, match='no such kernel'):
        y.sum().backward()


def test_compiled_autograd():
    module, x = layer(), torch.randn(3, 16, requires_grad=True)
    want = torch.autograd.grad(module(x).sum(), [x, *module.parameters()])
    y = plain(module, x).sum()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend='eager')):
        y.backward()
    got = [t.grad for t in (x, *module.parameters())]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(got, want, strict=True))


def test_other_versions_have_other_names():
    assert len({cpp_autograd.module_name(v) for v in ('2.11.0+cu130', '2.11.0', '2.11.1')}) == 3


def test_is_not_loaded_where_the_environment_says_so():
    code = 'from kat_mm.rational import cpp_autograd as c; print(c.is_used(), c.library)'
    environment = {**os.environ, cpp_autograd.VARIABLE: '0'}
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env=environment, check=True
    )
    assert result.stdout.strip() == 'False None'
    assert 'kat_mm' not in result.stderr
