"""How close `to_kat` comes to activations, on an interval and on samples."""

from copy import deepcopy

import pytest
import timm.layers
import torch
from mlps import QuickGELU, chain, mlp
from torch import nn

import kat_mm
from kat_mm.errors import DataError


def act2_error(model, act, low, high):
    """The largest |act2 - act| on an interval, act2 that of a chain."""
    x = torch.linspace(low, high, 8 * 1001, dtype=torch.float64).reshape(-1, 8)
    return (model[1](x) - act(x.clone())).abs().max().item()


@pytest.mark.parametrize(
    'act',
    [
        nn.GELU(),
        nn.GELU('tanh'),
        timm.layers.GELU(),
        nn.ReLU(True),
        nn.SiLU(),
        QuickGELU(),
        nn.LeakyReLU(0.2),
    ],
)
def test_activations_are_fitted_whatever_their_class(act):
    model = chain(16, 32, 16, act=lambda: act)
    (entry,) = kat_mm.to_kat(model).converted
    assert act2_error(model, act, -6, 6) == pytest.approx(entry.error, rel=1e-2)
    assert entry.error < 0.03


@pytest.mark.parametrize('samples', [None, torch.linspace(-9, 9, 160).double().view(10, 16)])
def test_is_exact_where_the_activation_is_rational(samples):
    model = mlp(nn.Softsign).double()
    before = deepcopy(model)
    (converted,) = kat_mm.to_kat(model, samples=samples).converted
    assert converted.error < 1e-6
    x = 9 * torch.randn(3, 16, dtype=torch.float64)
    torch.testing.assert_close(model(x), before(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(('interval', 'error'), [(2.0, 2.0e-4), (12, 1.31e-2)])
def test_the_interval_is_what_the_fit_serves(interval, error):
    model = chain(16, 32, 16)
    (entry,) = kat_mm.to_kat(model, interval=interval).converted
    assert entry.interval == (-interval, interval)
    assert act2_error(model, nn.GELU(), *entry.interval) == pytest.approx(entry.error, rel=1e-2)
    assert entry.error == pytest.approx(error, rel=0.02)


class Scaled(nn.Module):
    """Two MLPs with inputs of different sizes, called with two arguments."""

    def __init__(self):
        super().__init__()
        self.narrow, self.wide = chain(16, 32, 16), chain(16, 32, 16)
        self.rest = chain(16, 32, 16)
        for layer, std in ((self.narrow[0], 0.05), (self.wide[0], 0.5)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        self.drop = nn.Dropout(0.9)

    def forward(self, x, scale):
        x = self.drop(x * scale)
        return self.narrow(x) + self.wide(x)


@pytest.mark.parametrize(
    'samples',
    [lambda x: (x, 2.0), lambda x: dict(x=x, scale=2.0)],
    ids=['tuple', 'dict'],
)
def test_samples_make_outputs_closer(samples):
    torch.manual_seed(0)
    model = Scaled().train()
    model.wide.eval()
    plain, fitted = deepcopy(model), deepcopy(model)
    kat_mm.to_kat(plain)
    report = kat_mm.to_kat(fitted, samples=samples(torch.randn(500, 16)))
    for name, module in model.named_modules():
        assert fitted.get_submodule(name).training == module.training
    narrow, wide, rest = report.converted
    assert narrow.interval[0] == pytest.approx(-1.8, abs=0.4)
    assert narrow.interval[1] == pytest.approx(1.8, abs=0.4)
    assert wide.interval[0] < -12
    assert wide.interval[1] > 12
    assert rest.interval == (-6, 6)  # it is not called
    assert rest.rms is None
    text = str(report).splitlines()
    assert text[1].endswith('rms error')
    assert text[2].endswith(f'{narrow.rms:.1e}')
    assert text[4].split()[-3:] == ['[-6,', '6]', '3.1e-03']

    for entry in (narrow, wide):
        first, act, _ = model.get_submodule(entry.name)
        h = first(2 * torch.randn(2000, 16)).detach()
        mlps = [each.get_submodule(entry.name) for each in (fitted, plain)]
        rms, without = ((mlp[1](h) - act(h)).square().mean().sqrt().item() for mlp in mlps)
        assert rms == pytest.approx(entry.rms, rel=0.3)
        assert rms < 0.7 * without
        error = act2_error(mlps[0].double(), act, *entry.interval)
        assert error == pytest.approx(entry.error, rel=0.02)


def test_inputs_near_zero_are_fitted_for_a_little_more():
    """What training changes soon would otherwise be far from all that was fitted."""
    model = chain(16, 32, 16)
    (entry,) = kat_mm.to_kat(model, samples=torch.zeros(1, 16)).converted
    assert entry.interval == (-1, 1)
    assert entry.error < 1e-3


def test_samples_of_which_activations_make_nothing_finite():
    model = chain(16, 32, 16)
    before = str(model)
    with pytest.raises(DataError, match='samples: an input of GELU is not finite'):
        kat_mm.to_kat(model, samples=torch.full((1, 16), float('inf')))
    assert str(model) == before
    assert not model[1]._forward_pre_hooks


def test_a_higher_order_is_closer():
    errors = []
    for order in ((3, 2), (5, 4), (8, 8)):
        model = chain(16, 32, 16)
        errors.append(kat_mm.to_kat(model, order=order).converted[0].error)
        assert model[1].order == order
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
