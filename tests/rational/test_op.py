"""The contract of kat_mm::rational, on every device: values, gradients, layouts, dtypes, errors."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import coefficients, formula

from kat_mm.rational import GroupRational, rational, rational_reference
from kat_mm.rational.op import compiled_devices

HALF = [torch.float16, torch.bfloat16]


def gradients(function, x, numerator, denominator, grad, *args):
    leaves = [t.detach().clone().requires_grad_() for t in (x, numerator, denominator)]
    y = function(*leaves, *args)
    y.backward(grad.to(y.dtype))
    return [y.detach()] + [leaf.grad for leaf in leaves]


def test_cpu_kernel_is_compiled():
    assert 'cpu' in compiled_devices(), 'the compiled CPU kernel is missing: build it first'


@pytest.mark.parametrize(
    ('shape', 'channel_dim'), [((3, 7, 48), -1), ((2, 16, 5, 9), 1), ((24,), 0)]
)
@pytest.mark.parametrize('shared', [True, False])
def test_fp32_agrees_with_fp64(device, shape, channel_dim, shared):
    a, b = coefficients(8, shared=shared, device=device)
    x = torch.randn(shape, device=device) * 3
    grad = torch.randn(shape, device=device)
    got = gradients(rational, x, a, b, grad, channel_dim)
    double = gradients(formula, x.double(), a.double(), b.double(), grad.double(), channel_dim)
    for ours, exact in zip(got, double, strict=True):
        scale = exact.abs().max().item()
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize('dtype', HALF)
@pytest.mark.parametrize('channel_dim', [-1, 1])
def test_half_errs_at_most_twice_the_plain_formula(device, dtype, channel_dim):
    a, b = coefficients(8, device=device)
    x = (torch.randn(4, 64, 64, device=device) * 2).to(dtype)
    grad = torch.randn(4, 64, 64, device=device).to(dtype)
    got = gradients(rational, x, a, b, grad, channel_dim)
    exact = gradients(formula, x.double(), a.double(), b.double(), grad.double(), channel_dim)
    plain = gradients(formula, x, a.to(dtype), b.to(dtype), grad, channel_dim)
    for i in (0, 1):  # value and dx: of x's dtype
        rounding = torch.finfo(dtype).eps * exact[i].abs().max()
        error, bound = (got[i] - exact[i]).abs().max(), (plain[i] - exact[i]).abs().max()
        assert error <= 2 * bound + rounding
        assert got[i].dtype == dtype
    for i in (2, 3):  # coefficient gradients: fp32 sums, whatever x's dtype
        torch.testing.assert_close(got[i].double(), exact[i], rtol=1e-3, atol=1e-3)
        assert got[i].dtype == torch.float32


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape_order_and_memory(data):
    """Random rank, sizes, channel dimension, orders, sharing and strides against the formula."""
    devices = ['cpu'] + (['cuda'] if torch.cuda.is_available() else [])
    device = data.draw(st.sampled_from(devices))
    groups = data.draw(st.integers(1, 5))
    shape = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    channel_dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    shape[channel_dim] = groups * data.draw(st.integers(1, 9))
    m, n = data.draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    rows_a, rows_b = data.draw(st.sampled_from([(1, groups), (groups, 1), (groups, groups)]))
    order = data.draw(st.permutations(range(len(shape))))
    torch.manual_seed(data.draw(st.integers(0, 99)))

    dtype = torch.float64
    a = torch.randn(rows_a, m + 1, dtype=dtype, device=device)
    b = torch.randn(rows_b, n, dtype=dtype, device=device)
    x = torch.randn([shape[d] for d in order], dtype=dtype, device=device)
    x = x.permute([order.index(d) for d in range(len(shape))])
    kind = data.draw(st.sampled_from(['dense', 'sliced', 'expanded']))
    if kind == 'sliced':
        x = torch.cat([x, x], dim=-1)[..., ::2]
    elif kind == 'expanded' and channel_dim % len(shape) != 0:
        x = x[:1].expand(x.shape) if x.shape[0] else x
    grad = torch.randn(shape, dtype=dtype, device=device)
    if max(rows_a, rows_b) < groups:  # one row each: any number of channels is one group
        groups = 1

    got = gradients(rational, x, a, b, grad, channel_dim)
    want = gradients(formula, x, a, b, grad, channel_dim)
    for ours, exact in zip(got, want, strict=True):
        assert ours.shape == exact.shape
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)


def test_reference_is_the_formula(device):
    a, b = coefficients(4, dtype=torch.float64, device=device)
    x = torch.randn(3, 8, 5, dtype=torch.float64, device=device)
    for channel_dim, view in ((1, x), (-1, x.transpose(1, 2))):
        torch.testing.assert_close(
            rational_reference(view, a, b, channel_dim), formula(view, a, b, channel_dim)
        )


def test_zero_denominators_still_learn(device):
    a = torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0, 0.0]], device=device)
    b = torch.zeros(2, 4, device=device)
    x = torch.randn(5, 4, device=device)
    y, dx, _, db = gradients(rational, x, a, b, torch.ones_like(x))
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(dx, torch.ones_like(x))
    powers = torch.stack([-x * x.abs() ** j for j in range(1, 5)])
    torch.testing.assert_close(db, powers.reshape(4, 5, 2, 2).sum((1, 3)).T)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
def test_gradients_are_bitwise_reproducible(device, dtype):
    a, b = coefficients(8, device=device)
    x = torch.randn(16, 197, 192, device=device).to(dtype)
    grad = torch.randn_like(x)
    first = gradients(rational, x, a, b, grad)
    for _ in range(5):
        again = gradients(rational, x, a, b, grad)
        assert all(torch.equal(p, q) for p, q in zip(first, again, strict=True))


def test_cpu_gradients_do_not_depend_on_the_number_of_threads():
    a, b = coefficients(8)
    x, grad = torch.randn(2, 64, 197, 192).unbind()
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(gradients(rational, x, a, b, grad))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(p, q) for p, q in zip(results[0], other, strict=True))


def test_memory_order_is_kept(device):
    a, b = coefficients(8, device=device)
    x = torch.randn(2, 16, 6, 10, device=device)
    channels_last = x.contiguous(memory_format=torch.channels_last)
    y = rational(channels_last, a, b, 1)
    assert y.stride() == channels_last.stride()
    assert torch.equal(y, rational(x, a, b, 1))


@pytest.mark.parametrize('offset', [1, 3])
def test_unaligned_memory(device, offset):
    a, b = coefficients(8, device=device)
    base = torch.randn(4 * 64 + offset, device=device)
    x = base[offset:].view(4, 64)
    assert torch.equal(rational(x, a, b), rational(x.clone(), a, b))


@pytest.mark.parametrize('autocast_dtype', HALF)
def test_autocast_writes_its_dtype_and_never_widens_the_activation(device, autocast_dtype):
    a, b = coefficients(8, device=device)
    x = torch.randn(4, 64, device=device)
    with torch.autocast(device, autocast_dtype):
        y, dx, da, db = gradients(rational, x, a, b, torch.ones_like(x))
        assert y.dtype == autocast_dtype
        assert (dx.dtype, da.dtype, db.dtype) == (torch.float32,) * 3
        low = rational(x.to(autocast_dtype), a, b)
        assert low.dtype == autocast_dtype
        assert rational(x.double(), a.double(), b.double()).dtype == torch.float64
    exact = gradients(formula, x.double(), a.double(), b.double(), torch.ones_like(x))
    tolerance = torch.finfo(autocast_dtype).eps
    torch.testing.assert_close(y.double(), exact[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(dx.double(), exact[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('dtype', HALF)
def test_coefficients_of_a_half_model(device, dtype):
    a, b = coefficients(8, dtype=dtype, device=device)
    x = torch.randn(4, 64, device=device).to(dtype)
    _, _, da, db = gradients(rational, x, a, b, torch.ones_like(x))
    assert da.dtype == db.dtype == dtype


OPCHECK = [
    (dict(), 'plain'),
    (dict(channel_dim=0), 'transposed'),
    (dict(), 'strided'),
    (dict(), 'empty'),
    (dict(), 'frozen'),
    (dict(), 'no_grad'),
    (dict(out_dtype=torch.bfloat16), 'out_dtype'),
]


@pytest.mark.parametrize(('kwargs', 'case'), OPCHECK, ids=[case for _, case in OPCHECK])
def test_opcheck(device, kwargs, case):
    a, b = coefficients(4, device=device)
    x = torch.randn(0 if case == 'empty' else 3, 8, device=device)
    if case == 'transposed':
        x = x.t()
    if case == 'strided':
        x = torch.randn(3, 16, device=device)[:, ::2]
    x.requires_grad_(case != 'no_grad')
    for coefficient in (a, b):
        coefficient.requires_grad_(case not in ('frozen', 'no_grad'))
    torch.library.opcheck(torch.ops.kat_mm.rational.default, (x, a, b), kwargs)
    grad = torch.randn_like(x)
    for wanted in (True, False):
        inputs = grad, x, a, b, kwargs.get('channel_dim', -1), wanted
        if case != 'plain':  # elsewhere as autograd calls it
            inputs = [t.detach() if isinstance(t, torch.Tensor) else t for t in inputs]
        torch.library.opcheck(torch.ops.kat_mm.rational_backward.default, inputs)


@pytest.mark.slow
def test_compile_is_eager_without_breaks_or_recompiles(device):
    a, b = coefficients(8, device=device)
    compiled = torch.compile(lambda x: rational(x * 2, a, b).sum(), fullgraph=True, dynamic=True)
    a.requires_grad_()
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (2, 5, 7):
            x = torch.randn(batch, 3, 64, device=device, requires_grad=True)
            y = compiled(x)
            (grad_x, grad_a) = torch.autograd.grad(y, (x, a))
            expected = rational(x * 2, a, b).sum()
            torch.testing.assert_close(y, expected)
            for ours, eager in zip(
                (grad_x, grad_a), torch.autograd.grad(expected, (x, a)), strict=True
            ):
                torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)


def test_training_matches_the_reference(device):
    """The op and its reference lead the same small model along the same loss curve."""

    def losses(function):
        torch.manual_seed(3)
        first, last = torch.nn.Linear(6, 32), torch.nn.Linear(32, 1)
        a, b = torch.randn(1, 6), torch.rand(8, 4)
        a, b = (torch.nn.Parameter(t.to(device)) for t in (a, b))
        model = torch.nn.ModuleList([first, last]).to(device)
        optimizer = torch.optim.SGD([*model.parameters(), a, b], lr=0.01, momentum=0.9)
        x = torch.randn(256, 6, device=device)
        target = (x.prod(1, keepdim=True)).tanh()
        curve = []
        for _ in range(60):
            loss = (last(function(first(x), a, b)) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        return torch.tensor(curve)

    ours, reference = losses(rational), losses(formula)
    assert reference[-1] < 0.8 * reference[0]
    torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_more_than_32_bits_of_elements(device):
    """Elements beyond 2^31 are computed where they lie."""
    count = 2**31 + 8 * 1024
    needed = 4 * count
    if device == 'cpu':
        pytest.skip('8 GiB and a minute on the CPU, whose indices are int64 throughout')
    if torch.cuda.get_device_properties(0).total_memory < 4 * needed:
        pytest.skip(f'needs {4 * needed / 2**30:.0f} GiB of GPU memory')
    a, b = coefficients(8, device=device)
    x = torch.zeros(count // 64, 64, device=device, dtype=torch.bfloat16)
    x[-5:] = torch.randn(5, 64, device=device).to(x.dtype)
    x.requires_grad_()
    y = rational(x, a, b)
    assert torch.equal(y[-5:], rational(x[-5:], a, b))
    grad = torch.zeros_like(y)
    grad[-5:] = 1
    y.backward(grad)
    small = x[-5:].detach().requires_grad_()
    rational(small, a, b).backward(grad[-5:])
    assert torch.equal(x.grad[-5:], small.grad)


ERRORS = [
    (dict(x=torch.zeros(4, 12)), ValueError, r'12 channels .*\(4, 12\).* 8 groups'),
    (dict(a=torch.zeros(3, 6)), ValueError, r'\(3, 6\) and denominator \(8, 4\)'),
    (dict(a=torch.zeros(1, 10)), ValueError, r'm and n from 1 to 8.*\(1, 10\)'),
    (dict(a=torch.zeros(6)), ValueError, r'numerator \(6,\)'),
    (dict(x=torch.zeros(4, 16, dtype=torch.int64)), TypeError, 'x has dtype torch.int64'),
    (dict(b=torch.zeros(8, 4, dtype=torch.complex64)), TypeError, 'denominator has dtype'),
    (dict(x=torch.zeros(4, 16, device='meta')), RuntimeError, 'x is on meta, numerator on cpu'),
    (dict(x=torch.tensor(1.0)), ValueError, 'at least one dimension'),
    (dict(channel_dim=2), IndexError, 'channel_dim=2 is out of range'),
    (dict(a=torch.zeros(0, 6), b=torch.zeros(0, 4)), ValueError, 'both must have 1 row'),
    (dict(x=torch.zeros(0, 16, dtype=torch.int64)), TypeError, 'x has dtype torch.int64'),
]


@pytest.mark.parametrize(('change', 'error', 'message'), ERRORS)
def test_errors_name_what_is_wrong(change, error, message):
    a, b = coefficients(8)
    arguments = dict(x=torch.zeros(4, 16), a=a, b=b, channel_dim=-1) | change
    with pytest.raises(error, match=message):
        rational(*arguments.values())


def test_raw_op_refuses_what_would_read_out_of_bounds(device):
    a, b = coefficients(8, device=device)
    x = torch.zeros(4, 16, device=device)
    bad = [
        (torch.zeros(4, 12, device=device), a, b),
        (x, a.double(), b),
        (x, a[0], b),
        (x, a, b.expand(8, 4)[:3]),
        (x, torch.zeros(1, 12, device=device), b),
    ]
    for arguments in bad:
        if arguments[2].shape[0] == 3:
            arguments = (x, torch.zeros(8, 6, device=device), arguments[2])
        with pytest.raises(RuntimeError, match='rational'):
            torch.ops.kat_mm.rational(*arguments)


def test_backward_refuses_a_gradient_of_another_shape(device):
    a, b = coefficients(8, device=device)
    x = torch.zeros(3, 5, 16, device=device)
    with pytest.raises(RuntimeError, match='shape'):
        torch.ops.kat_mm.rational_backward(x[:1], x, a, b)


def test_profilers_see_the_name_of_the_op(device):
    x = torch.randn(2, 16, device=device, requires_grad=True)
    with torch.profiler.profile() as profile:
        y = rational(x, *coefficients(8, device=device))
        y.sum().backward()
    assert type(y.grad_fn).__name__ == 'RationalBackward'
    names = {event.name for event in profile.events()}
    assert {
        'Rational',
        'kat_mm::rational',
        'RationalBackward',
        'kat_mm::rational_backward',
    } <= names


def test_can_be_traced(device):
    layer = GroupRational().to(device)
    x = torch.randn(4, 16, device=device)
    traced = torch.jit.trace(layer, x)
    assert torch.equal(traced(x), layer(x))


def test_every_dtype_pair_of_the_kernels(device):
    a, b = coefficients(4, device=device)
    x = torch.randn(6, 20, device=device)
    exact = rational(x.double(), a.double(), b.double())
    for dtype, out in itertools.product(HALF, [None, torch.bfloat16]):
        source = x if out else x.to(dtype)
        y = torch.ops.kat_mm.rational(source, a, b, -1, out)
        assert y.dtype == (out or dtype)
        want = exact if out else rational(source.double(), a.double(), b.double())
        torch.testing.assert_close(y.double(), want, rtol=2e-2, atol=2e-2)
