import pytest
import torch
from torch import nn

from kat_mm.rational import GroupRational
from kat_mm.rational.coefficients import FITS, FUNCTIONS, initial_coefficients, variance_gain

# The largest error of each fit on [-3, 3], as stated beside its coefficients.
STATED_ERRORS = dict(
    identity=0,
    relu=1.3e-2,
    leaky_relu=1.3e-2,
    gelu=1.3e-3,
    swish=5e-7,
    silu=5e-7,
    tanh=1.0e-6,
    sigmoid=2e-8,
    mish=8.5e-5,
    softplus=1.9e-6,
    elu=2.3e-4,
)


@pytest.mark.parametrize('name', FITS)
def test_a_fresh_layer_is_its_function(name, device):
    layer = GroupRational(num_groups=4, init=name).double().to(device)
    x = torch.linspace(-3, 3, 4 * 5001, dtype=torch.float64, device=device).reshape(-1, 4)
    error = (layer(x) - FUNCTIONS[name](x)).abs().max().item()
    assert error <= 1.01 * STATED_ERRORS[name] + 1e-7  # the parameters are rounded to fp32


def test_parameters_are_those_of_the_published_checkpoints():
    shapes = {name: tuple(p.shape) for name, p in GroupRational().named_parameters()}
    assert shapes == {'weight_numerator': (1, 6), 'weight_denominator': (8, 4)}
    own = GroupRational(num_groups=3, order=(7, 2), init='identity', shared_numerator=False)
    assert own.weight_numerator.shape == (3, 8)
    assert own.weight_denominator.shape == (3, 2)


def test_replaces_an_inplace_activation():
    block = nn.Sequential(nn.Conv2d(3, 16, 3), GroupRational(channel_dim=1, inplace=True))
    y = block(torch.randn(2, 3, 9, 9))
    y.sum().backward()
    assert y.shape == (2, 16, 7, 7)
    assert block[1].weight_denominator.grad.abs().sum() > 0


def test_published_variance_gains():
    """Gains of the exact functions as the KAT paper lists them; fits come close."""
    for name, gain in dict(identity=1.0, relu=2.0, gelu=2.3568, swish=2.8178).items():
        assert variance_gain(*initial_coefficients(name)) == pytest.approx(gain, rel=5e-3)


def test_coefficients_may_be_given():
    layer = GroupRational(num_groups=1, init=((0, 2, 0), (1,)), order=(2, 1))
    torch.testing.assert_close(layer(torch.tensor([[3.0]])), torch.tensor([[6 / 4]]))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(init='swich'), "unknown rational init 'swich'; known: elu, gelu"),
        (dict(init='swish', order=(3, 2)), r'order=\(3, 2\) holds 4 and 2'),
        (dict(order=(9, 4)), r'between 1 and 8, got \(9, 4\)'),
        (dict(num_groups=0), 'at least 1, got 0'),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        GroupRational(**arguments)
