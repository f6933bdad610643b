"""Kolmogorov-Arnold attention against loops written from the formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from kat_mm.attention import operator
from kat_mm.attention.karat import KArAt
from kat_mm.attention.simplex import project_on_simplex
from kat_mm.attention.softmax import SoftmaxAttention
from kat_mm.errors import ConfigError
from kat_mm.models import KAT

HEADS, DIMS, RANK = 2, 8, 3


def fourier(x, c):
    return sum(
        c[2 * g - 2] * math.cos(g * x) + c[2 * g - 1] * math.sin(g * x)
        for g in range(1, len(c) // 2 + 1)
    )


def chebyshev(x, c):
    angle = math.acos(math.tanh(x))
    return sum(a * math.cos(g * angle) for g, a in enumerate(c))


def b_spline(x, c):
    """By the recursion of Cox and de Boor."""
    intervals = len(c) - 3
    step = 2 * 4.0 / intervals
    knots = [-4.0 + (i - 3) * step for i in range(len(c) + 4)]

    def spline(i, degree):
        if degree == 0:
            return float(knots[i] <= x < knots[i + 1])
        left = (x - knots[i]) / (knots[i + degree] - knots[i])
        right = (knots[i + degree + 1] - x) / (knots[i + degree + 1] - knots[i + 1])
        return left * spline(i, degree - 1) + right * spline(i + 1, degree - 1)

    return sum(a * spline(i, 3) for i, a in enumerate(c))


def rational(x, c):
    p = sum(a * x**i for i, a in enumerate(c[:6]))
    return p / (1 + sum(abs(b) * abs(x) ** j for j, b in enumerate(c[6:], start=1)))


def dog(x, c):
    u = (x - c[1]) / math.exp(c[2])
    return c[0] * -u * math.exp(-u * u / 2)


def morlet(x, c):
    u = (x - c[1]) / math.exp(c[2])
    return c[0] * math.cos(5 * u) * math.exp(-u * u / 2)


BASES = [fourier, chebyshev, b_spline, rational, dog, morlet]


def attention(basis='fourier', grid=(2, 3), prefix=1, window_size=0, **options):
    torch.manual_seed(0)
    layer = KArAt(
        *(DIMS, HEADS, grid, window_size, 0 if window_size else prefix),
        **{'basis': basis, 'rank': RANK, **options},
    )
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer.double().eval()


def naive_rows(layer, basis, scores):
    """The weights [N] of one row of scores of one head, for each head."""

    def phi(part, head, p, q, x):
        value = basis(x, part.coefficients[head, p, q].tolist())
        if part.basis_scale is not None:
            value *= part.basis_scale[head, p, q].item()
        if part.base_scale is not None:
            base = {'identity': lambda x: x, 'silu': lambda x: x / (1 + math.exp(-x))}[part.base]
            value += part.base_scale[head, p, q].item() * base(x)
        return value

    def apply(part, head, row):
        outputs, inputs = part.coefficients.shape[1:3]
        assert inputs == len(row)
        return [sum(phi(part, head, p, q, row[q]) for q in range(inputs)) for p in range(outputs)]

    def product(matrix, row):
        return [sum(w * x for w, x in zip(line, row, strict=True)) for line in matrix.tolist()]

    op = layer.operator
    result = []
    for head, row in enumerate(scores):
        row, count = row.tolist(), len(row)

        def scaled(row, count=count):
            return [x / math.sqrt(count) for x in row]

        if op.form == 'w_phi':
            row = product(op.weight[head], scaled(apply(op.units, head, row)))
        elif op.form == 'phi_w':
            row = apply(op.units, head, scaled(product(op.weight[head], row)))
        elif op.form == 'phi_phi':
            row = apply(op.units2, head, scaled(apply(op.units, head, row)))
        else:
            row = scaled(apply(op.units, head, row))
        result.append([x / count for x in row])
    return torch.tensor(result, dtype=torch.float64)


def naive(layer, basis, x):
    q, k, v = (t.unflatten(-1, (HEADS, -1)) for t in layer.qkv(x).chunk(3, -1))
    y = torch.empty_like(q)
    for b in range(x.shape[0]):
        for i in range(x.shape[1]):
            scores = torch.einsum('hd,jhd->hj', q[b, i], k[b]) / math.sqrt(q.shape[-1])
            rows = naive_rows(layer, basis, scores)
            if layer.operator.simplex:
                rows = torch.stack([on_simplex(row) for row in rows])
            y[b, i] = torch.einsum('hj,jhd->hd', rows, v[b])
            if layer.gate is not None:
                y[b, i] *= layer.gate[:, None]
                y[b, i] += torch.einsum('hj,jhd->hd', scores.softmax(-1), v[b])
    return layer.proj(y.flatten(-2))


def on_simplex(row):
    """By bisection for the threshold."""
    low, high = row.min() - 1, row.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (row - middle).clamp(min=0).sum() > 1 else (low, middle)
    return (row - high).clamp(min=0)


@pytest.mark.parametrize('form', operator.FORMS)
@pytest.mark.parametrize('basis', BASES, ids=lambda basis: basis.__name__)
def test_every_basis_and_form_equals_the_loops(basis, form):
    layer = attention(basis.__name__, form=form)
    x = torch.randn(2, 7, DIMS, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, (2, 3)), naive(layer, basis, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    'options',
    [
        *({'published_scales': True}, {'base': 'identity'}, {'base': 'softmax'}),
        *({'simplex': True}, {'simplex': True, 'form': 'phi_w'}),
        {'published_scales': True, 'form': 'phi_phi', 'base': 'softmax'},
    ],
    ids=str,
)
def test_options_equal_the_loops(options):
    layer = attention(**options)
    x = torch.randn(1, 7, DIMS, dtype=torch.float64)
    with torch.no_grad():
        if options.get('simplex'):
            layer.operator.weight.mul_(20)  # so that some entries are zero and some are not
        torch.testing.assert_close(
            layer(x, (2, 3)), naive(layer, fourier, x), rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize('form', operator.FORMS)
@pytest.mark.parametrize('basis', ['fourier', 'rational', 'morlet'])
def test_derivatives(basis, form):
    layer = attention(basis, (1, 2), form=form, mimetic=False).operator
    parameters = dict(layer.named_parameters())

    def call(q, k, v, *values):
        state = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(layer, state, (q, k, v, (1, 2)))

    qkv = [torch.randn(1, HEADS, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(call, (*qkv, *parameters.values()))


def test_chunks_change_nothing(monkeypatch):
    layer, x = attention(), torch.randn(2, 7, DIMS, dtype=torch.float64, requires_grad=True)

    def run():
        layer.zero_grad()
        y = layer(x, (2, 3))
        gradients = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
        return [y, *gradients]

    whole = run()
    monkeypatch.setattr(operator, 'CHUNK', 2 * HEADS * 7 * 2)
    for one, other in zip(whole, run(), strict=True):
        torch.testing.assert_close(one, other)


def test_starts_as_the_softmax_model_bit_for_bit():
    torch.manual_seed(0)
    softmax = KAT({'embed_dims': 16, 'num_layers': 2, 'num_heads': 2}, 64)
    gated = KAT(
        {'embed_dims': 16, 'num_layers': 2, 'num_heads': 2},
        64,
        attention=dict(type='KArAt', base='softmax'),
    )
    missing, unexpected = gated.load_state_dict(softmax.state_dict(), strict=False)
    assert not unexpected
    assert {key.split('.')[3] for key in missing} == {'gate', 'operator'}
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(gated(images)[0], softmax(images)[0])
    gated(images)[0].square().sum().backward()
    assert gated.blocks[0].attn.gate.grad.abs().min() > 0


@pytest.mark.parametrize('form', operator.FORMS)
@pytest.mark.parametrize('basis', ['fourier', 'chebyshev', 'b_spline', 'rational', 'dog', 'morlet'])
def test_starts_with_the_spread_of_softmax(basis, form):
    """Weights of scores of N(0, 1) vary by about 1 / N; parameters have a size of about 1."""
    torch.manual_seed(0)
    layer = KArAt(64, 4, (6, 6), basis=basis, form=form, rank=48).operator
    q, k, v = torch.randn(3, 16, 4, 36, 16)
    y = layer(q, k, v, (6, 6))
    assert 0.6 < y.var().item() * 36 < 1.6
    softmax = F.scaled_dot_product_attention(q, k, v)
    assert 0.3 < y.var().item() / softmax.var().item() < 1.2
    for name, parameter in layer.named_parameters():
        assert 0.05 < parameter.square().mean().sqrt() < 10, name


@pytest.mark.parametrize(
    ('arch', 'grid_size', 'shared', 'count'),
    [
        *(('tiny', 3, False, 765_936), ('small', 3, False, 1_531_872)),
        *(('base', 1, False, 1_702_080), ('base', 1, 'operator', 141_840)),
    ],
)
def test_published_numbers_of_parameters(arch, grid_size, shared, count):
    basis = dict(type='fourier', grid_size=grid_size)
    with torch.device('meta'):
        model = KAT(
            arch,
            attention=dict(type='KArAt', basis=basis, published_scales=True, shared=shared),
        )
    own = [p for name, p in model.named_parameters() if '.operator.' in name]
    assert sum(p.numel() for p in own) == count


def test_no_parameter_is_without_a_gradient():
    model = KAT({'embed_dims': 16, 'num_layers': 2, 'num_heads': 2}, 64, attention='KArAt')
    model(torch.randn(1, 3, 64, 64))[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    units = model.blocks[0].attn.operator.units
    assert units.base_scale is units.basis_scale is None
    assert units.coefficients.shape == (2, 12, 17, 6)


def test_windows_at_the_edges_take_the_parameters_of_their_places():
    layer = attention(window_size=3, grid=(3, 3))
    x = torch.randn(1, 4 * 5, DIMS, dtype=torch.float64)
    qkv = layer.qkv(x).unflatten(1, (4, 5))[:, 3:, 3:].reshape(1, 2, -1)  # the last window: 1 x 2
    with torch.no_grad():
        y = layer(x, (4, 5)).unflatten(1, (4, 5))[:, 3:, 3:].reshape(1, 2, -1)
        q, k, v = qkv.view(1, 2, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        wide = torch.zeros(1, HEADS, 2, 9, dtype=torch.float64)
        wide[..., :2] = scores
        op = layer.operator
        functions = [f * F.pad(torch.ones(2), (0, 7)) for f in op.units.basis.functions(wide)]
        z = sum(f @ op.units.coefficients[..., i].mT for i, f in enumerate(functions)) * 3 / 2
        wanted = z @ (op.weight[:, :2].mT @ v) / 2
    torch.testing.assert_close(y, layer.proj(wanted.transpose(1, 2).reshape(1, 2, -1)))


@pytest.mark.parametrize('simplex', [False, True])
@pytest.mark.parametrize('form', operator.FORMS)
@pytest.mark.parametrize('basis', ['fourier', 'rational', 'dog'])
def test_a_masked_window_is_a_smaller_one(basis, form, simplex):
    layer = attention(basis, (2, 3), window_size=3, form=form, simplex=simplex)
    x = torch.randn(2, 6, 3 * DIMS, dtype=torch.float64)
    mask = torch.zeros(2, 3, dtype=torch.float64)
    mask[:, 2] = -torch.inf
    smaller = x.unflatten(1, (2, 3))[:, :, :2].flatten(1, 2)
    with torch.no_grad():
        y = layer.attend(x, (2, 3), mask.view(1, 1, 1, 6).repeat(2, 1, 1, 1))
        y = y.unflatten(1, (2, 3))[:, :, :2].flatten(1, 2)
        torch.testing.assert_close(y, layer.attend(smaller, (2, 2)))


def test_larger_maps_interpolate_what_belongs_to_tokens():
    layer = attention(grid=(2, 2))
    x = torch.randn(1, 17, DIMS, dtype=torch.float64)
    with torch.no_grad():
        y = layer(x, (4, 4))
        wide = attention(grid=(4, 4))
        wide.load_state_dict(
            {k: v for k, v in layer.state_dict().items() if 'operator' not in k}, strict=False
        )

        def resized(t, dim):  # of each entry of the others alone
            t = t.movedim(dim, -1)
            maps = t[..., 1:].reshape(-1, 1, 2, 2)
            maps = F.interpolate(maps, (4, 4), mode='bilinear').view(*t.shape[:-1], 16)
            return torch.cat([t[..., :1], maps], -1).movedim(-1, dim)

        op = wide.operator
        op.weight.copy_(resized(layer.operator.weight, 1))
        coefficients = resized(layer.operator.units.coefficients, 2)
        op.units.coefficients.copy_(coefficients * math.sqrt(5 / 17))
        torch.testing.assert_close(y, wide(x, (4, 4)))


def test_universal_attention_is_one_operator():
    model = KAT(
        {'embed_dims': 16, 'num_layers': 3, 'num_heads': 2},
        64,
        attention=dict(type='KArAt', shared='operator'),
    )
    first, second, _ = (block.attn for block in model.blocks)
    assert first.operator is second.operator
    assert first.qkv is not second.qkv


def test_projection_on_the_simplex():
    torch.manual_seed(0)
    x = torch.randn(50, 9, dtype=torch.float64) * 3
    y = project_on_simplex(x)
    torch.testing.assert_close(y.sum(-1), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(y, torch.stack([on_simplex(row) for row in x]))


def test_half_precision_is_computed_in_fp32():
    torch.manual_seed(0)
    layer = KArAt(DIMS, HEADS, (3, 3)).operator
    q, k, v = (torch.randn(2, HEADS, 9, 4).bfloat16() for _ in range(3))
    y = layer(q, k, v, (3, 3))
    wide = layer(q.float(), k.float(), v.float(), (3, 3))
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y, wide.bfloat16())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('form', operator.FORMS)
def test_parameters_of_half_precision(form, dtype):
    torch.manual_seed(0)
    layer = KArAt(DIMS, HEADS, (3, 3), form=form)
    x = torch.randn(1, 9, DIMS)
    with torch.no_grad():
        wanted = layer(x, (3, 3))
        y = layer.to(dtype)(x.to(dtype), (3, 3))
    assert y.dtype is dtype
    assert (y.float() - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_an_empty_batch():
    layer = attention()
    assert layer(torch.zeros(0, 7, DIMS, dtype=torch.float64), (2, 3)).shape == (0, 7, DIMS)


def test_meta_tensors():
    layer = attention().to('meta')
    assert layer(torch.zeros(2, 7, DIMS, device='meta').double(), (2, 3)).shape == (2, 7, DIMS)


def test_transforms_of_torch_func():
    layer = attention()
    x = torch.randn(1, 7, DIMS, dtype=torch.float64, requires_grad=True)

    def total(x):
        return layer(x, (2, 3)).square().sum()

    [wanted] = torch.autograd.grad(total(x), x)
    torch.testing.assert_close(torch.func.grad(total)(x.detach()), wanted)


@pytest.mark.parametrize('basis', ['rational', 'dog', 'morlet'])
def test_building_draws_nothing_but_its_weights(basis, monkeypatch):
    """Whoever seeds a run, on any device, has the seed still."""
    monkeypatch.setattr(torch, 'manual_seed', pytest.fail)
    torch.default_generator.manual_seed(1)
    KArAt(DIMS, HEADS, (2, 2), basis=basis)
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(1)
    KArAt(DIMS, HEADS, (2, 2), basis=basis)
    assert torch.equal(torch.default_generator.get_state(), state)


def test_exports_for_any_number_of_images():
    model = KAT({'embed_dims': 16, 'num_layers': 2, 'num_heads': 2}, 64, attention='KArAt').eval()
    batch = torch.export.Dim('batch', min=1, max=64)
    program = torch.export.export(
        model, (torch.randn(2, 3, 64, 64),), dynamic_shapes={'images': {0: batch}}
    )
    x = torch.randn(5, 3, 64, 64)
    torch.testing.assert_close(program.module()(x)[0], model(x)[0])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(basis='sine'), "unknown basis 'sine'; known: b_spline, "),
        (dict(basis=dict(type='fourier', grid_size=0)), 'basis.grid_size=0'),
        (dict(rank=0), 'attention.rank=0'),
        (dict(form='phi_v'), "attention.form='phi_v' must be one of w_phi"),
        (dict(base='relu'), "attention.base='relu' must be one of"),
        (dict(form='phi', grid=(20, 20)), 'functions for all pairs of 401 tokens'),
        (dict(basis=dict(type='b_spline', limit=0)), 'basis.limit=0 must be positive and finite'),
        (dict(basis=dict(type='b_spline', limit=math.inf)), 'basis.limit=inf must be positive'),
        (dict(basis=dict(type='morlet', w=5)), "'morlet' takes no w; it takes no arguments"),
        (dict(basis=dict(degree=3)), "no degree; it takes grid_size; type='chebyshev' takes it"),
        (dict(basis=dict(type='rational', order=(9, 4))), r'basis.order=\(9, 4\)'),
    ],
)
def test_errors_say_what_would_fit(options, message):
    with pytest.raises(ConfigError, match=message):
        attention(**options)


@pytest.mark.parametrize(
    ('options', 'tokens', 'grid', 'message'),
    [
        ({}, 7, (3, 3), 'KArAt: 7 tokens are not those of a map of 3 x 3 and a prefix of 1'),
        (dict(window_size=3), 6, (2, 2), '6 tokens are not those of a map of 2 x 2 and a prefix'),
        (dict(window_size=2, grid=(2, 2)), 6, (2, 3), 'a window of 2 x 3 .* larger than 2 x 2'),
        (dict(form='phi'), 401, (20, 20), 'functions for all pairs of 401 tokens; .* windows'),
    ],
)
@pytest.mark.parametrize('by_kernels', [False, True])
def test_tokens_that_do_not_fit_the_operator(
    options, tokens, grid, message, by_kernels, monkeypatch
):
    monkeypatch.setattr(operator, 'is_served', lambda *_: by_kernels)
    layer = attention(**options)
    with pytest.raises(ConfigError, match=message):
        layer.attend(torch.zeros(1, tokens, 3 * DIMS, dtype=torch.float64), grid)
    with pytest.raises(ConfigError, match=message):
        layer.matrices(torch.zeros(1, tokens, 3 * DIMS, dtype=torch.float64), grid)


def test_softmax_attention_is_as_it_was():
    assert KArAt.fresh == ('operator', 'gate')
    assert SoftmaxAttention(16, 2, (2, 2)).state_dict().keys() < attention().state_dict().keys()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_rounds_inputs_and_outputs_alone(dtype):
    """Of a number of channels whose root is no power of 2, scaled queries have other digits."""
    layer = attention().float()
    q, k, v = torch.randn(3, 2, HEADS, 7, 5).to(dtype)
    with torch.no_grad():
        found = layer.operator(q, k, v, (2, 3))
        wanted = layer.operator(q.float(), k.float(), v.float(), (2, 3))
    assert torch.equal(found, wanted.to(dtype))


@pytest.mark.parametrize('simplex', [False, True])
@pytest.mark.parametrize('form', operator.FORMS)
def test_finer_maps_of_the_same_image_compute_the_same(form, simplex, monkeypatch):
    """Where each token is there four times, with parameters that are."""
    layer = attention(grid=(2, 3), prefix=0, form=form, simplex=simplex)
    places = torch.arange(6).view(2, 3).repeat_interleave(2, 0).repeat_interleave(2, 1).flatten()
    x = torch.randn(2, 6, DIMS, dtype=torch.float64)
    with torch.no_grad():
        layer.operator.units.coefficients.mul_(20)  # so that the simplex has edges
        coarse = layer(x, (2, 3))
        monkeypatch.setattr(layer.operator, '_fit', lambda x, dim, _: x.index_select(dim, places))
        fine = layer(x[:, places], (4, 6))
    torch.testing.assert_close(fine, coarse[:, places])
