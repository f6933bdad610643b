"""The op kat_mm::layer_norm_rational against layer norm and activation in fp64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kat_mm.rational import GroupRational, rational
from kat_mm.rational.layer_norm_rational import layer_norm_rational
from kat_mm.rational.torch_internals import has_hooks

OP = torch.ops.kat_mm.layer_norm_rational.default
EPS = 1e-6


def arguments(shape, device, groups=8, order=(5, 4), shared=True):
    torch.manual_seed(0)
    channels = shape[-1]
    x = torch.randn(shape) * (torch.rand(*shape[:-1], 1) + 0.1) * 3 + torch.randn(*shape[:-1], 1)
    weight, bias = torch.rand(channels) + 0.5, torch.randn(channels)
    numerator = torch.randn(1 if shared else groups, order[0] + 1)
    denominator = torch.randn(groups, order[1])
    return [t.to(device) for t in (x, weight, bias, numerator, denominator)]


def exact(x, weight, bias, numerator, denominator):
    normed = F.layer_norm(x, x.shape[-1:], weight, bias, EPS)
    return rational(normed, numerator, denominator)


def gradients(function, tensors, grad):
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    y = function(*leaves)
    y.backward(grad.to(y.dtype))
    return [y.detach()] + [leaf.grad for leaf in leaves]


@pytest.mark.parametrize(
    ('shape', 'groups'),
    [
        ((3, 7, 192), 8),
        ((2, 197, 384), 8),
        ((5, 768), 8),
        ((9, 1024), 8),
        ((1, 24), 3),
        ((33, 4), 1),
    ],
)
@pytest.mark.parametrize('shared', [True, False])
@pytest.mark.parametrize('out_dtype', [None, torch.bfloat16, torch.float16])
def test_agrees_with_fp64(device, shape, groups, shared, out_dtype):
    tensors = arguments(shape, device, groups, shared=shared)
    grad = torch.randn(shape, device=device).to(out_dtype or torch.float32)
    got = gradients(lambda *args: OP(*args, EPS, out_dtype)[0], tensors, grad)
    want = gradients(exact, [t.double() for t in tensors], grad.double())
    assert got[0].dtype == (out_dtype or torch.float32)
    rounding = torch.finfo(out_dtype).eps if out_dtype else 0
    for i, (ours, fp64) in enumerate(zip(got, want, strict=True)):
        tolerance = 2e-5 + (rounding if i == 0 else 0)
        scale = fp64.abs().max().item()
        torch.testing.assert_close(ours.double(), fp64, rtol=tolerance, atol=tolerance * scale)


def test_gradients_are_bitwise_reproducible(device):
    tensors = arguments((16, 197, 384), device)
    grad = torch.randn(16, 197, 384, device=device).bfloat16()
    first = gradients(lambda *args: OP(*args, EPS, torch.bfloat16)[0], tensors, grad)
    for _ in range(5):
        again = gradients(lambda *args: OP(*args, EPS, torch.bfloat16)[0], tensors, grad)
        assert all(torch.equal(p, q) for p, q in zip(first, again, strict=True))


def test_large_means_do_not_cancel(device):
    tensors = arguments((4, 192), device)
    tensors[0] += 1e4
    got = OP(*tensors, EPS)[0]
    torch.testing.assert_close(
        got.double(), exact(*(t.double() for t in tensors)), rtol=1e-3, atol=0.1
    )


def test_empty(device):
    tensors = arguments((0, 192), device)
    got = gradients(lambda *args: OP(*args, EPS)[0], tensors, torch.empty(0, 192, device=device))
    assert got[0].shape == (0, 192)
    assert all(not grad.any() for grad in got[1:])


@pytest.mark.parametrize('case', ['plain', 'frozen', 'no_grad', 'out_dtype'])
def test_opcheck(device, case):
    tensors = arguments((3, 5, 64), device)
    tensors[0].requires_grad_(case != 'no_grad')
    for tensor in tensors[1:]:
        tensor.requires_grad_(case not in ('no_grad', 'frozen'))
    out_dtype = torch.bfloat16 if case == 'out_dtype' else None
    torch.library.opcheck(OP, (*tensors, EPS, out_dtype))


def modules(channels, device, **kwargs):
    torch.manual_seed(0)
    norm, act = nn.LayerNorm(channels, eps=EPS), GroupRational(**{'channel_dim': -1, **kwargs})
    nn.init.normal_(norm.weight)
    return norm.to(device), act.to(device)


@pytest.mark.parametrize('autocast', [True, False])
def test_modules_are_computed_as_if_apart(device, autocast):
    norm, act = modules(192, device)
    x = torch.randn(2, 5, 192, device=device)
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        got, want = layer_norm_rational(x, norm, act), act(norm(x))
    assert got.dtype == want.dtype
    tolerance = 0.01 if autocast else 1e-5
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ('channels', 'kwargs', 'dtype'),
    [
        (1032, {}, torch.float32),
        (24, {}, torch.float32),
        (192, {'order': (6, 5)}, torch.float32),
        (192, {}, torch.bfloat16),
        (192, {}, torch.float64),
    ],
)
def test_what_the_kernel_does_not_take_works_too(device, channels, kwargs, dtype):
    norm, act = (module.to(dtype) for module in modules(channels, device, **kwargs))
    x = torch.randn(2, 5, channels, device=device, dtype=dtype)
    assert torch.equal(layer_norm_rational(x, norm, act), act(norm(x)))


@pytest.mark.parametrize('channel_dim', [None, -1, 1, 3])
def test_channels_of_the_activation_are_not_always_those_of_the_norm(device, channel_dim):
    norm, act = modules(64, device, channel_dim=channel_dim)
    nn.init.normal_(act.weight_denominator)  # groups that differ
    x = torch.randn(2, 64, 3, 64, device=device)
    torch.testing.assert_close(
        layer_norm_rational(x, norm, act), act(norm(x)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize('kind', ['forward_pre', 'forward', 'full_backward_pre', 'full_backward'])
@pytest.mark.parametrize('which', ['norm', 'act'])
def test_hooks_of_the_modules_are_called(device, which, kind):
    norm, act = modules(192, device)
    module = {'norm': norm, 'act': act}[which]
    seen = []
    getattr(module, f'register_{kind}_hook')(lambda *args: seen.append(args[0]))
    x = torch.randn(2, 192, device=device, requires_grad=True)
    layer_norm_rational(x, norm, act).sum().backward()
    assert seen == [module]


@pytest.mark.parametrize('which', ['norm', 'act'])
def test_a_forward_of_the_instance_is_called(device, which):
    norm, act = modules(192, device)
    module = {'norm': norm, 'act': act}[which]
    own = module.forward
    module.forward = lambda x: 2 * own(x)
    assert has_hooks(module)
    x = torch.randn(2, 192, device=device)
    assert torch.equal(layer_norm_rational(x, norm, act), act(norm(x)))


def test_the_autograd_node_has_the_name_of_the_op(device):
    if device == 'cpu':
        pytest.skip('there they are two ops')
    norm, act = modules(192, device)
    y = layer_norm_rational(torch.randn(2, 192, device=device), norm, act)
    assert type(y.grad_fn).__name__ == 'LayerNormRationalBackward'


def test_other_modules_are_called_as_they_are(device):
    norm, _ = modules(192, device)
    x = torch.randn(2, 192, device=device)

    class Doubled(GroupRational):
        def forward(self, x):
            return 2 * super().forward(x)

    for act in (nn.GELU(), Doubled().to(device)):
        assert torch.equal(layer_norm_rational(x, norm, act), act(norm(x)))


def test_errors_of_the_modules_stay(device):
    norm, act = modules(192, device)
    with pytest.raises(RuntimeError, match='normalized_shape'):
        layer_norm_rational(torch.randn(2, 100, device=device), norm, act)


def test_keeps_for_backward_what_layer_norm_alone_would(device):
    if device == 'cpu':
        pytest.skip('there they are two ops')
    norm, act = modules(192, device)
    x = torch.randn(64, 192, device=device, requires_grad=True)
    kept = {}
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.__setitem__(t.data_ptr(), t) or t, lambda t: t
    )
    with hooks, torch.autocast('cuda', torch.bfloat16):
        layer_norm_rational(x, norm, act)
    own = {p.data_ptr() for p in (x, *norm.parameters(), *act.parameters())}
    assert sum(t.numel() for pointer, t in kept.items() if pointer not in own) == 2 * 64


@pytest.mark.slow
def test_compiles_once_for_any_number_of_rows(device):
    tensors = arguments((2, 3, 64), device)[1:]
    compiled = torch.compile(lambda x: OP(x, *tensors, EPS)[0] * 2, fullgraph=True, dynamic=True)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (2, 5, 7):
            x = torch.randn(rows, 3, 64, device=device)
            torch.testing.assert_close(compiled(x), OP(x, *tensors, EPS)[0] * 2)


def test_unaligned_memory(device):
    """Such as parameters that are views of one flat buffer."""

    def shifted(tensor):
        flat = torch.empty(tensor.numel() + 1, device=device, dtype=tensor.dtype)
        return flat[1:].view(tensor.shape).copy_(tensor)

    tensors = arguments((5, 64), device)
    grad = torch.randn(5, 64, device=device)
    expected_y, statistics = OP(*tensors, EPS)
    y, _ = OP(*map(shifted, tensors), EPS)
    torch.testing.assert_close(y, expected_y)
    x, *parameters = tensors
    backward = torch.ops.kat_mm.layer_norm_rational_backward
    got = backward(shifted(grad), shifted(x), statistics, *map(shifted, parameters))
    for ours, expected in zip(got, backward(grad, x, statistics, *parameters), strict=True):
        torch.testing.assert_close(ours, expected)
