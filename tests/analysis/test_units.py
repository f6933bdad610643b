"""Learned functions on points and their distance to a start, against loops."""

import math

import pytest
import torch

from kat_mm.analysis.units import POINTS, evaluate_units, layer_with, unit_change, unit_layers
from kat_mm.attention.karat import KArAt
from kat_mm.models import KAT


def units_of(basis='fourier', **options):
    torch.manual_seed(0)
    return KArAt(8, 2, (1, 3), basis=basis, rank=2, **options).operator.units


def phi(layer, head, index, x):
    """A function of Fourier units, from the formula."""
    p, q = divmod(index, layer.coefficients.shape[2])
    c = layer.coefficients[head, p, q].tolist()
    y = sum(
        c[2 * g - 2] * math.cos(g * x) + c[2 * g - 1] * math.sin(g * x)
        for g in range(1, len(c) // 2 + 1)
    )
    if layer.basis_scale is not None:
        y *= layer.basis_scale[head, p, q].item()
    if layer.base_scale is not None:
        y += layer.base_scale[head, p, q].item() * x / (1 + math.exp(-x))
    return y


@pytest.mark.parametrize('published_scales', [False, True])
def test_functions_are_those_of_the_formula(published_scales):
    layer = units_of(published_scales=published_scales)
    if published_scales:
        torch.nn.init.normal_(layer.basis_scale)
    x = torch.tensor([-2.0, 0.3, 5.0], dtype=torch.float64)
    y = evaluate_units(layer, x, 1, torch.tensor([4, 1]))
    wanted = [[phi(layer, 1, index, v) for v in x.tolist()] for index in (4, 1)]
    torch.testing.assert_close(y, torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize('basis', ['fourier', 'chebyshev', 'b_spline', 'rational', 'dog', 'morlet'])
def test_sums_of_the_functions_are_those_of_the_layer(basis):
    layer = units_of(basis)
    x = torch.randn(3)
    z = layer.units(lambda p, dim: p).sums(x.view(1, 1, 1, 3))[0, :, 0]
    for head in range(2):
        each = [
            evaluate_units(layer, x, head, torch.tensor([3 * p, 3 * p + 1, 3 * p + 2]))
            for p in range(2)
        ]
        wanted = torch.stack([values.diagonal().sum() for values in each])
        torch.testing.assert_close(z[head].double(), wanted, rtol=1e-5, atol=1e-6)


def test_change_is_the_root_mean_square_on_the_interval():
    layer, start = units_of(), units_of()
    with torch.no_grad():
        start.coefficients.add_(torch.randn_like(start.coefficients))
    change = unit_change(layer, start, 3.0)
    for head in range(2):
        for index in range(6):
            x = torch.linspace(-3, 3, POINTS, dtype=torch.float64).tolist()
            now = [phi(layer, head, index, v) for v in x]
            then = [phi(start, head, index, v) for v in x]
            pairs = list(zip(now, then, strict=True))
            for values, found in (
                (now, change.size),
                (then, change.start_size),
                ([a - b for a, b in pairs], change.distance),
            ):
                wanted = math.sqrt(sum(v * v for v in values) / POINTS)
                assert found[head, index].item() == pytest.approx(wanted, rel=1e-9)
        assert change.by_change(head)[0] == change.distance[head].argmax()
    relative = change.distance / change.start_size
    torch.testing.assert_close(
        torch.tensor(change.summary()['relative_change']['most']).double(), relative.amax(1)
    )


def test_without_a_start_the_largest_come_first():
    layer = units_of()
    change = unit_change(layer, None, 4.0)
    assert change.distance is change.start_size is None
    assert change.by_change(0)[0] == change.size[0].argmax()
    assert 'relative_change' not in change.summary()


def test_a_start_is_taken_from_the_weights_of_a_model():
    arch = {'embed_dims': 16, 'num_layers': 3, 'num_heads': 2}
    options = dict(type='KArAt', form='phi_phi')
    model, other = (KAT(arch, 64, attention=options) for _ in range(2))
    layers = dict(unit_layers(model))
    assert list(layers) == [
        f'blocks.{i}.attn.operator.{part}' for i in range(3) for part in ('units', 'units2')
    ]
    name = 'blocks.1.attn.operator.units2'
    start = layer_with(layers[name], name, other.state_dict())
    assert torch.equal(start.coefficients, other.blocks[1].attn.operator.units2.coefficients)
    change = unit_change(layers[name], layer_with(layers[name], name, model.state_dict()), 4.0)
    assert not change.distance.any()
    shared = KAT(arch, 64, attention=dict(type='KArAt', shared='operator'))
    assert len(dict(unit_layers(shared))) == 1
