import re
from pathlib import Path

import pytest
import torch
from torch import nn

from kat_mm.rational import GroupRational, fits, rational
from kat_mm.rational.coefficients import (
    FITS,
    FUNCTIONS,
    initial_coefficients,
    max_error,
    variance_gain,
)

STATED = re.compile(r"'(\w+)': \{|\((\d), (\d)\): \(  # (.+)")


def stated_errors():
    """The errors that stand beside the coefficients: [(function, order, {interval: error})]."""
    result = []
    for name, m, n, comment in STATED.findall(Path(fits.__file__).read_text()):
        if name:
            function = name
            continue
        errors = re.findall(r'([\d.e-]+) on \[-(\d), \d\]', comment)
        order = int(m), int(n)
        result.append((function, order, {int(end): float(error) for error, end in errors}))
    return result


def test_all_fits_state_their_errors():
    stated = {(function, order) for function, order, errors in stated_errors() if errors}
    fitted = {(name, order) for name, orders in FITS.items() for order in orders}
    assert fitted - stated == {('identity', (1, 1))} | {('silu', order) for order in FITS['silu']}


@pytest.mark.parametrize(('name', 'order', 'errors'), stated_errors())
def test_a_fresh_layer_is_its_function(name, order, errors, device):
    layer = GroupRational(num_groups=4, init=name, order=order).double().to(device)
    for end, stated in (errors or {3: 0.0}).items():
        x = torch.linspace(-end, end, 4 * 5001, dtype=torch.float64, device=device).reshape(-1, 4)
        error = (layer(x) - FUNCTIONS[name](x)).abs().max().item()
        assert error == pytest.approx(stated, rel=0.05, abs=1e-7)  # parameters are fp32


@pytest.mark.parametrize(
    ('name', 'order', 'bar'),
    [
        ('swish', (5, 4), 1.2e-6),
        ('gelu', (6, 4), 1e-4),
        ('tanh', (5, 4), 2e-5),
        ('sigmoid', (5, 4), 2e-5),
    ],
)
def test_fits_are_close(name, order, bar):
    assert max_error(name, order=order) <= bar


def test_a_higher_order_fits_better():
    errors = [max_error('gelu', order=order) for order in ((5, 4), (5, 8), (6, 4), (8, 8))]
    assert errors[0] == errors[1] > errors[2] > errors[3]


def test_state_dict_is_that_of_the_published_checkpoints():
    layer = GroupRational()
    shapes = {key: tuple(value.shape) for key, value in layer.state_dict().items()}
    assert shapes == {'weight_numerator': (1, 6), 'weight_denominator': (8, 4)}
    own = GroupRational(num_groups=3, order=(7, 2), init='identity', shared_numerator=False)
    assert own.numerator.shape == (3, 8) == own.state_dict()['weight_numerator'].shape
    assert own.denominator.shape == (3, 2) == own.state_dict()['weight_denominator'].shape


def test_parameters_are_no_matrices():
    """Xavier initialisation and weight decay that go by the dimensions leave them alone."""
    assert all(parameter.dim() == 1 for parameter in GroupRational().parameters())


@pytest.mark.parametrize('assign', [False, True])
def test_state_dict_round_trip(assign):
    torch.manual_seed(0)
    saved = GroupRational(shared_numerator=False)
    for parameter in saved.parameters():
        nn.init.normal_(parameter)
    model = nn.Sequential(nn.Identity(), GroupRational(shared_numerator=False))
    state = {f'1.{key}': value.clone() for key, value in saved.state_dict().items()}
    model.load_state_dict(state, assign=assign)
    assert [v.dim() for v in state.values()] == [2, 2]  # the caller's dict stays as it was
    for name, parameter in model[1].named_parameters():
        assert torch.equal(parameter, saved.get_parameter(name))
        assert isinstance(parameter, nn.Parameter)
        assert parameter.dim() == 1


def test_mismatched_coefficients_name_both_shapes():
    message = r'0.weight_denominator: the checkpoint has \(4, 4\), the model has \(8, 4\)'
    with pytest.raises(RuntimeError, match=message):
        nn.Sequential(GroupRational()).load_state_dict(
            nn.Sequential(GroupRational(num_groups=4)).state_dict()
        )


def test_mm_saves_the_published_shapes(tmp_path):
    checkpoint = pytest.importorskip('mmengine.runner.checkpoint')
    model = nn.Sequential(GroupRational())
    assert checkpoint.get_state_dict(model)['0.weight_denominator'].shape == (8, 4)
    nn.init.normal_(model[0].weight_denominator)
    checkpoint.save_checkpoint(
        {'state_dict': checkpoint.get_state_dict(model)}, str(tmp_path / 'a.pth')
    )
    loaded = nn.Sequential(GroupRational())
    checkpoint.load_checkpoint(loaded, str(tmp_path / 'a.pth'), strict=True)
    assert torch.equal(loaded[0].weight_denominator, model[0].weight_denominator)


def test_replaces_an_inplace_activation():
    block = nn.Sequential(nn.Conv2d(3, 16, 3), GroupRational(channel_dim=1, inplace=True))
    y = block(torch.randn(2, 3, 9, 9))
    y.sum().backward()
    assert y.shape == (2, 16, 7, 7)
    assert block[1].weight_denominator.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ('channel_dim', 'shape', 'expected'),
    [
        (None, (16,), -1),
        (None, (2, 16), -1),
        (None, (2, 16, 24), -1),  # tokens, as transformers have them
        (None, (2, 16, 24, 8), 1),
        (None, (2, 16, 24, 8, 8), 1),
        (-1, (2, 16, 24, 8), -1),
        (2, (2, 16, 24, 8), 2),
    ],
)
def test_channels_of_maps_and_of_tokens(channel_dim, shape, expected):
    layer = GroupRational(channel_dim=channel_dim)
    torch.nn.init.normal_(layer.weight_denominator)  # groups that differ
    x = torch.randn(shape)
    assert torch.equal(layer(x), rational(x, *layer.state_dict().values(), expected))


@pytest.mark.parametrize(('channels', 'divisor'), [(4, 4), (18, 6), (13, 1)])
def test_channels_that_the_groups_do_not_divide(channels, divisor):
    x = torch.zeros(2, channels, 5, 5)
    with pytest.raises(
        ValueError, match=f'the {channels} channels.* 8 groups.* num_groups={divisor} of'
    ):
        GroupRational()(x)
    assert GroupRational(divisor)(x).shape == x.shape


def test_published_variance_gains():
    """Gains of the exact functions as the KAT paper lists them; fits come close."""
    for name, gain in dict(identity=1.0, relu=2.0, gelu=2.3568, swish=2.8178).items():
        assert variance_gain(*initial_coefficients(name)) == pytest.approx(gain, rel=5e-3)


def test_a_function_that_is_zero_has_no_variance_gain():
    with pytest.raises(ValueError, match='zero everywhere has no variance gain'):
        variance_gain(torch.zeros(6), torch.ones(4))


def test_coefficients_may_be_given():
    layer = GroupRational(num_groups=1, init=((0, 2, 0), (1,)), order=(2, 1))
    torch.testing.assert_close(layer(torch.tensor([[3.0]])), torch.tensor([[6 / 4]]))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(init='swich'), "unknown rational init 'swich'; known: elu, geglu, gelu"),
        (dict(init='swish', order=(3, 2)), r'order=\(3, 2\) holds 4 and 2'),
        (dict(order=(9, 4)), r'order=\(9, 4\) must be two degrees'),
        (dict(num_groups=0), 'num_groups=0 must be a whole number from 1 on'),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        GroupRational(**arguments)
