"""The GR-KAN layer and its variance-preserving start."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kat_mm.models import GRKAN
from kat_mm.rational.coefficients import FITS, FUNCTIONS, variance_gain


def variance_ratios(act_init, seeds=16, dims=192, hidden=768, tokens=32):
    """Ratios of output to input variance of fc1, of fc2 and of the whole layer.

    They are means over draws of the weights. Functions that are positive throughout, such as the
    sigmoid, need many: most of an output's variance is then that of a constant per channel.
    """
    ratios = torch.zeros(3)
    layer = GRKAN(dims, hidden, act_init=act_init)
    for seed in range(seeds):
        torch.manual_seed(seed)
        layer.reset_parameters()
        x, h = torch.randn(tokens, dims), torch.randn(tokens, hidden)
        with torch.no_grad():
            ratios[0] += layer.fc1(layer.act1(x)).var() / x.var()
            ratios[1] += layer.fc2(layer.act2(h)).var() / h.var()
            ratios[2] += layer(x).var() / x.var()
    return ratios / seeds


@pytest.mark.parametrize('act', sorted(FITS))
def test_a_fresh_layer_keeps_the_variance(act):
    for act_init in (('identity', act), (act, act)):
        deviations = variance_ratios(act_init).sub(1).abs()
        assert deviations[:2].max() < 0.05, act_init
        # A token's variance is spread by the squares of gates, and squared again.
        assert deviations[2] < (0.2 if act in ('geglu', 'swiglu') else 0.05), act_init


def test_weights_are_drawn_with_the_gain_of_the_activation_in_front_of_them():
    torch.manual_seed(0)
    layer = GRKAN(256, 1024, act_init=('tanh', 'relu'))
    for act, fc in (('tanh', layer.fc1), ('relu', layer.fc2)):
        expected = variance_gain(FUNCTIONS[act]) / fc.in_features
        assert fc.weight.var().item() == pytest.approx(expected, rel=0.02)
        assert not fc.bias.any()


@settings(max_examples=20, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=0, max_size=3),
    groups=st.sampled_from([1, 2, 4, 8]),
    ratio=st.integers(1, 3),
)
def test_any_leading_shape(shape, groups, ratio):
    layer = GRKAN(16, 16 * ratio, activation={'num_groups': groups})
    x = torch.randn(*shape, 16, requires_grad=True)
    y = layer(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'embed_dims': 12}, 'num_groups=8 does not divide embed_dims=12'),
        (
            {'embed_dims': 16, 'hidden_channels': 20},
            'num_groups=8 does not divide hidden_channels=20',
        ),
        ({'embed_dims': 16, 'activation': {'num_groups': 0}}, 'num_groups=0'),
        ({'embed_dims': 16, 'act_init': ('gelu',)}, 'act_init must be a pair'),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        GRKAN(**kwargs)


def test_drop():
    layer = GRKAN(16, 32, drop=1.0).train()
    assert not layer(torch.randn(4, 16)).any()
    assert layer.eval()(torch.randn(4, 16)).any()
