"""Every derivative of the op, its layer and the fused layer norm against those of the formula."""

import copy
from functools import cache, partial

import pytest
import torch
from oracle import coefficients, formula
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kat_mm.models.ffn.gr_kan import GRKAN
from kat_mm.rational import GroupRational, cpp_autograd, rational
from kat_mm.rational.layer_norm_rational import layer_norm_rational

EPS = 1e-6
BACKWARD = torch.ops.kat_mm.rational_backward.default
FUSED = torch.ops.kat_mm.layer_norm_rational.default


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.act = nn.LayerNorm(8, eps=EPS), GroupRational(2, 'identity', (3, 2))

    def forward(self, x):
        return layer_norm_rational(x, self.norm, self.act)


LAYER, NORMED = GroupRational(2, 'identity', (3, 2)), Normed()


def layer(x, a, b):
    names = 'weight_numerator', 'weight_denominator'
    return functional_call(LAYER, dict(zip(names, (a.flatten(), b.flatten()), strict=True)), x)


def normed(x, weight, bias, a, b):
    names = 'norm.weight', 'norm.bias', 'act.weight_numerator', 'act.weight_denominator'
    parameters = dict(zip(names, (weight, bias, a.flatten(), b.flatten()), strict=True))
    return functional_call(NORMED, parameters, x)


def normed_formula(x, weight, bias, a, b):
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + EPS).rsqrt()
    return formula(centred * scale * weight + bias, a, b)


SUBJECTS = {
    'function': rational,
    'op': torch.ops.kat_mm.rational,
    'layer': layer,
    'layer norm': normed,
    'layer norm op': lambda *tensors: FUSED(*tensors, EPS)[0],
}


def draw(device, with_norm, zeros=False):
    """Returns arguments away from |x| = 0 and |b| = 0, or just there."""
    torch.manual_seed(0)
    a, b = coefficients(2, 3, 2)
    b += b.sign() * 0.1
    x, weight, bias = torch.randn(3, 8), torch.rand(8) + 0.5, torch.randn(8)
    x += x.sign() * 0.05
    if zeros:
        b[:, 0] = 0
        weight[::3] = bias[::3] = 0  # where the norm is 0
        x[:, ::3] *= with_norm
    # The fused kernel is one of fp32.
    dtype = torch.float32 if device == 'cuda' and with_norm else torch.float64
    tensors = [x, weight, bias, a, b] if with_norm else [x, a, b]
    return [t.to(device, dtype) for t in tensors]


def leaves(tensors):
    return [t.clone().requires_grad_() for t in tensors]


def like(tensors, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(t.shape, generator=generator).to(t) for t in tensors]


def total(f):
    return lambda *tensors: f(*tensors).sin().sum()


def squares(tensors):
    return sum(t.square().sum() for t in tensors)


def everything(transform):
    """The transform of a scalar function in all its arguments."""
    return lambda f, tensors: transform(total(f), tuple(range(len(tensors))))(*tensors)


def per_sample(transform):
    def derivative(f, tensors):
        numbers = tuple(range(len(tensors)))
        in_dims = 0, *[None] * (len(tensors) - 1)
        return vmap(transform(total(f), numbers), in_dims)(*tensors)

    return derivative


def twice(outer, inner):
    return everything(lambda f, numbers: outer(inner(f, numbers), numbers))


def penalty(f, tensors, frozen=()):
    """The gradient of a penalty whose first gradient comes from a sum, which carries no graph."""
    tensors = leaves(tensors)
    for i in frozen:
        tensors[i].requires_grad_(False)
    wanted = [t for t in tensors if t.requires_grad]
    first = torch.autograd.grad(f(*tensors).sum(), wanted, create_graph=True)
    return torch.autograd.grad(squares(first), wanted)


def penalty_with_hooks(f, tensors):
    """In the hooks of saved tensors, which checkpoints have too."""
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        return penalty(f, tensors)


def third_order(f, tensors):
    tensors = leaves(tensors)
    gradients = [f(*tensors).sin().sum()]
    for _ in range(3):
        gradients = torch.autograd.grad(squares(gradients), tensors, create_graph=True)
    return gradients


def nested_grads(f, tensors):
    numbers = tuple(range(len(tensors)))

    def norm(*tensors):
        return squares(grad(total(f), numbers)(*tensors))

    return grad(norm, numbers)(*tensors)


def tangent(f, tensors, enabled=True):
    with forward_ad.dual_level(), torch.set_grad_enabled(enabled):
        duals = map(forward_ad.make_dual, tensors, like(tensors))
        return forward_ad.unpack_dual(f(*duals)).tangent


def reverse_of_forward(f, tensors):
    tensors = leaves(tensors)
    return torch.autograd.grad(tangent(f, tensors).square().sum(), tensors)


def tangents_of_gradients(f, tensors):
    """Of the first and the second backward of a graph that is older than the tangents."""
    tensors = leaves(tensors)
    y = f(*tensors)
    cotangent = like([y])[0].requires_grad_()
    first = torch.autograd.grad(y, tensors, cotangent, create_graph=True)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(cotangent.detach(), like([y], 2)[0])
        grads = [*torch.autograd.grad(y, tensors, dual, retain_graph=True)]
        duals = [*map(forward_ad.make_dual, like(first, 3), like(first, 4))]
        grads += torch.autograd.grad(first, [cotangent, *tensors], duals)
        return [forward_ad.unpack_dual(t).tangent for t in grads]


DERIVATIVES = {
    'reverse': lambda f, t: torch.autograd.grad(total(f)(*(t := leaves(t))), t),
    'penalty': penalty,
    'penalty of frozen x': partial(penalty, frozen=[0]),
    'penalty of frozen coefficients': partial(penalty, frozen=[-1, -2]),
    'penalty with hooks': penalty_with_hooks,
    'third order': third_order,
    'forward': tangent,
    'forward without grad': partial(tangent, enabled=False),
    'reverse of forward': reverse_of_forward,
    'forward of reverse': tangents_of_gradients,
    'vectorized jacobian': lambda f, t: torch.autograd.functional.jacobian(
        total(f), (*t,), vectorize=True
    ),
    'vectorized forward jacobian': lambda f, t: torch.autograd.functional.jacobian(
        f, (*t,), vectorize=True, strategy='forward-mode'
    ),
    'grad': everything(grad),
    'grad of grad': nested_grads,
    'vjp': lambda f, t: vjp(f, *t)[1](like([f(*t)])[0]),
    'jvp': lambda f, t: jvp(f, (*t,), (*like(t),)),
    'jvp without grad': torch.no_grad()(lambda f, t: jvp(f, (*t,), (*like(t),))),
    'jacfwd': everything(jacfwd),
    'hessian': everything(hessian),
    'jacrev(jacrev)': twice(jacrev, jacrev),
    'jacrev(jacfwd)': twice(jacrev, jacfwd),
    'jacfwd(jacfwd)': twice(jacfwd, jacfwd),
    'vmap(grad)': per_sample(grad),
    'vmap(hessian)': per_sample(hessian),
    'grad(vmap)': lambda f, t: grad(
        lambda *t: vmap(f, (0, *[None] * (len(t) - 1)))(*t).sin().sum(), tuple(range(len(t)))
    )(*t),
}


# Where torch's layer norm is wrong (up to 2.15 at least), which is what runs without our kernel.
NOT_OF_TORCH = {'third order', 'reverse of forward', 'hessian', 'vmap(hessian)'}
NOT_OF_TORCH |= {'jacrev(jacrev)', 'jacrev(jacfwd)', 'jacfwd(jacfwd)'}


@cache
def expected(device, derivative, with_norm, zeros):
    exact = normed_formula if with_norm else formula
    return tree_leaves(DERIVATIVES[derivative](exact, draw(device, with_norm, zeros)))


@pytest.mark.parametrize('zeros', [False, True], ids=['general', 'zeros'])
@pytest.mark.parametrize('derivative', DERIVATIVES)
@pytest.mark.parametrize('subject', SUBJECTS)
def test_is_that_of_the_formula(device, subject, derivative, zeros):
    if device == 'cpu' and subject == 'layer norm' and derivative in NOT_OF_TORCH:
        pytest.skip("that of torch's layer norm, which is wrong")
    with_norm = 'norm' in subject
    tensors = draw(device, with_norm, zeros)
    got = tree_leaves(DERIVATIVES[derivative](SUBJECTS[subject], tensors))
    tolerance = 1e-3 if tensors[0].dtype is torch.float32 else 1e-8
    for ours, exact in zip(got, expected(device, derivative, with_norm, zeros), strict=True):
        scale = exact.abs().max().item()
        torch.testing.assert_close(ours, exact, rtol=tolerance, atol=tolerance * (1 + scale))


# In these the forward pass is a plain call, which takes the node in C++ where there is one.
PLAIN = ['reverse', 'third order', 'forward of reverse', 'vectorized jacobian']
PLAIN += [name for name in DERIVATIVES if name.startswith('penalty')]


@pytest.mark.parametrize('derivative', PLAIN)
@pytest.mark.parametrize('subject', ['function', 'layer', 'layer norm'])
def test_nodes_in_python_are_those_of_the_formula_too(device, subject, derivative):
    with cpp_autograd.switched(False):
        test_is_that_of_the_formula(device, subject, derivative, zeros=False)


@pytest.mark.skipif(not cpp_autograd.is_used(), reason='needs the autograd nodes in C++')
@pytest.mark.parametrize('derivative', PLAIN)
def test_the_node_of_the_fused_op_in_cpp(device, derivative):
    """On the CPU too, where the layers take two ops."""

    def fused(x, weight, bias, a, b):
        y = cpp_autograd.library.layer_norm_rational(
            *(x, weight, bias, a.flatten(), b.flatten()), *(2, (3, 2), True, -1, EPS)
        )
        assert y is not None
        return y

    tensors = [t.float() for t in draw(device, with_norm=True)]
    got = tree_leaves(DERIVATIVES[derivative](fused, tensors))
    exact = tree_leaves(DERIVATIVES[derivative](normed_formula, [t.double() for t in tensors]))
    for ours, want in zip(got, exact, strict=True):
        scale = want.abs().max().item()
        torch.testing.assert_close(ours.double(), want, rtol=1e-3, atol=1e-3 * (1 + scale))


OPS = {'function': rational, 'op': torch.ops.kat_mm.rational, 'backward op': BACKWARD}


@pytest.mark.parametrize('subject', OPS)
def test_gradcheck(device, subject):
    tensors = draw(device, with_norm=False)
    if subject == 'backward op':
        tensors = like(tensors[:1]) + tensors
    check_gradients(OPS[subject], tensors)


def test_gradcheck_of_the_fused_op():
    """On the CPU, as the kernel is one of fp32. Its statistics have derivatives too."""
    check_gradients(lambda *tensors: FUSED(*tensors, EPS), draw('cpu', with_norm=True))


def check_gradients(function, tensors):
    batched = dict(check_batched_grad=True)
    tensors = leaves(tensors)
    forward = dict(check_forward_ad=True, check_batched_forward_grad=True)
    assert gradcheck(function, tensors, **forward, **batched)
    assert gradgradcheck(function, tensors, check_fwd_over_rev=True, **batched)


@pytest.mark.parametrize('op', [rational, torch.ops.kat_mm.rational])
def test_the_convention_at_zero(device, op):
    """x / (1 + |b||x|) has the derivatives of x / (1 + b|x|), with sgn(0) = 0 for x, at b = 0."""
    a = torch.tensor([[0.0, 1.0]], device=device)

    def f(point):
        x, b = point
        return op(x.reshape(1, 1), a, b.reshape(1, 1)).sum()

    for x in (0.0, 1.5, -2.0):
        point = torch.tensor([x, 0.0], device=device)
        assert grad(f)(point).tolist() == [1, -x * abs(x)]
        mixed = -2 * abs(x)
        want = torch.tensor([[0.0, mixed], [mixed, 2 * x * x * x]], device=device)
        for derivative in (
            hessian(f),
            jacrev(jacrev(f)),
            jacrev(jacfwd(f)),
            jacfwd(jacfwd(f)),
            partial(torch.autograd.functional.hessian, f),
        ):
            torch.testing.assert_close(derivative(point), want)


class Kernels(TorchDispatchMode):
    """Collects the names of the kernels of ours that run."""

    def __enter__(self):
        self.names = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == 'kat_mm':
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('derivative', ['reverse', 'grad', 'vjp', 'vmap(grad)', 'grad(vmap)'])
def test_first_derivatives_run_the_kernels(device, derivative):
    tensors = draw(device, with_norm=False)
    with Kernels() as kernels:
        DERIVATIVES[derivative](rational, tensors)
    assert set(kernels.names) == {'rational', 'rational_backward'}


VMAPS = [  # in_dims, the shape of x, channel_dim as one sample has it
    ((0, None, None), (2, 3, 8), -1),
    ((2, None, None), (3, 8, 2), 1),
    ((1, 0, None), (8, 2, 5), 0),
    ((None, 0, 1), (3, 8, 4), 1),
    ((0, None, 2), (2, 8), -1),
    ((1, 1, 0), (0, 2, 8), -1),
    ((0, 0, 0), (0, 3, 8), -1),
]


@pytest.mark.parametrize(('in_dims', 'shape', 'channel_dim'), VMAPS)
@pytest.mark.parametrize('op', [rational, torch.ops.kat_mm.rational])
def test_samples_anywhere(device, op, in_dims, shape, channel_dim):
    """Of x, of coefficients or of all of them, with the gradients of each."""
    size = 2 if in_dims[0] is None else shape[in_dims[0]]
    tensors = [torch.randn(shape), torch.randn(1, 4), torch.randn(2, 2)]
    for i in (1, 2):
        if in_dims[i] is not None:
            tensors[i] = torch.randn(size, *tensors[i].shape).movedim(0, in_dims[i])
    tensors = [t.to(device, torch.float64) for t in tensors]

    def values_and_grads(f):
        function = partial(f, channel_dim=channel_dim)
        y = vmap(function, in_dims)(*tensors)
        return y, *vmap(grad(total(function), (0, 1, 2)), in_dims)(*tensors)

    if size == 0:
        assert values_and_grads(op)[0].numel() == 0
        return
    for ours, exact in zip(values_and_grads(op), values_and_grads(formula), strict=True):
        torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize('op', [rational, torch.ops.kat_mm.rational])
def test_errors_of_samples(op):
    a, b = coefficients(2)
    for x, dim, error, message in (
        (torch.zeros(3, 4, 8), -3, IndexError, 'channel_dim=-3 is out of range for x 2-D'),
        (torch.zeros(3, 4, 7), -1, ValueError, '7 channels'),
        (torch.zeros(3), -1, ValueError, 'at least one dimension'),
    ):
        with pytest.raises(error, match=message):
            vmap(lambda x, dim=dim: op(x, a, b, dim))(x)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, 'autocast'])
def test_second_derivatives_of_half_precision(device, dtype):
    tensors = draw(device, with_norm=False)
    exact = penalty(formula, tensors)
    low = [t.float() for t in tensors]
    if dtype != 'autocast':
        low[0] = low[0].to(dtype)
    with torch.autocast(device, torch.bfloat16, enabled=dtype == 'autocast'):
        got = penalty(lambda *t: rational(*t).float(), low)
    for ours, want, tensor in zip(got, exact, low, strict=True):
        assert ours.dtype == tensor.dtype
        torch.testing.assert_close(ours.double(), want, rtol=0.05, atol=0.05 * want.abs().max())


@pytest.mark.parametrize('derivative', ['backward', 'grad', 'jvp'])
def test_a_derivative_that_is_not_served_raises(device, derivative):
    x, *others = (t.float() for t in draw(device, with_norm=True))
    statistics = FUSED(x, *others, EPS)[1]

    def gradient(g):
        return torch.ops.kat_mm.layer_norm_rational_backward(g, x, statistics, *others)[0].sum()

    g = torch.randn_like(x).requires_grad_()
    calls = dict(
        backward=lambda: gradient(g).backward(),
        grad=lambda: grad(gradient)(g),
        jvp=lambda: jvp(gradient, (g,), (g,)),
    )
    with pytest.raises(NotImplementedError, match='kat_mm::layer_norm_rational_backward has no'):
        calls[derivative]()


class Plain(GroupRational):
    """The layer by the formula."""

    def forward(self, x):
        return formula(x, self.numerator, self.denominator)


def plain(model):
    """A copy of a model that computes the formula."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module) is GroupRational:
            module.__class__ = Plain
    return model


class Critic(nn.Module):
    """Of vectors, by GR-KAN with the fused layer norm or by an activation alone."""

    def __init__(self, with_norm):
        super().__init__()
        self.embed, self.head = nn.Linear(6, 32), nn.Linear(32, 1)
        self.norm, self.ffn = (nn.LayerNorm(32), GRKAN(32, 64)) if with_norm else (None, None)
        self.act = None if with_norm else GroupRational(4)

    def forward(self, x):
        x = self.embed(x)
        x = self.act(x) if self.act else x + self.ffn(x, norm=self.norm)
        return self.head(x)


def train_with_penalty(model, device, steps=6):
    """Trains a critic as WGAN-GP does (arXiv 1704.00028); returns the penalties."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0005)
    penalties = []
    for _ in range(steps):
        real, fake, mix = (torch.rand(32, n, generator=generator).to(device) for n in (6, 6, 1))
        between = (mix * real.square() + (1 - mix) * fake).requires_grad_()
        (slopes,) = torch.autograd.grad(model(between).sum(), between, create_graph=True)
        penalties.append((slopes.norm(dim=1) - 1).square().mean())
        loss = model(fake).mean() - model(real.square()).mean() + 10 * penalties[-1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.stack(penalties).detach()


@pytest.mark.parametrize('with_norm', [False, True], ids=['activation', 'GR-KAN'])
def test_a_gradient_penalty_trains_as_by_the_formula(device, with_norm):
    model = Critic(with_norm).to(device)
    exact = plain(model)
    got, want = (train_with_penalty(m, device) for m in (model, exact))
    assert want[-1] < want[0]
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)
    for ours, theirs in zip(model.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('with_norm', [False, True], ids=['activation', 'GR-KAN'])
def test_per_sample_gradients(device, with_norm):
    model = Critic(with_norm).to(device)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    x = torch.randn(5, 6, device=device)

    def loss(parameters, x):
        return functional_call(model, parameters, x).square().sum()

    got = vmap(grad(loss), (None, 0))(parameters, x)
    for i, sample in enumerate(x):
        model.zero_grad()
        loss(dict(model.named_parameters()), sample).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(got[name][i], parameter.grad, rtol=1e-4, atol=1e-4)


def test_forward_mode_keeps_the_order_of_memory(device):
    x, a, b = (t.to(device) for t in (torch.randn(2, 8, 5, 3), *coefficients(2)))
    x = x.contiguous(memory_format=torch.channels_last)
    with forward_ad.dual_level():
        y = rational(forward_ad.make_dual(x, x), a, b, 1)
    assert y.stride() == x.stride()
