import copy
import pickle
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from kat_mm.rational import GroupRational, fits, published_state_dict, rational
from kat_mm.rational.coefficients import (
    FITS,
    FUNCTIONS,
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


def randomised(**kwargs):
    layer = GroupRational(**kwargs)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def same(model, other):
    state, expected = model.state_dict(), other.state_dict()
    return state.keys() == expected.keys() and all(
        torch.equal(state[k], expected[k]) for k in state
    )


def test_parameters_are_no_matrices():
    """Xavier initialisation and weight decay that go by the dimensions leave them alone."""
    layer = GroupRational(num_groups=3, order=(7, 2), init='identity', shared_numerator=False)
    assert [tuple(p.shape) for p in layer.parameters()] == [(24,), (6,)]
    assert layer.numerator.shape == (3, 8)
    assert layer.denominator.shape == (3, 2)


def test_state_dict_has_the_parameters():
    model = nn.Sequential(randomised())
    assert dict(model.state_dict(keep_vars=True)) == dict(model.named_parameters())
    loaded = nn.Sequential(GroupRational())
    loaded.load_state_dict(dict(model.named_parameters()))
    assert same(loaded, model)


@pytest.mark.parametrize('assign', [False, True])
@pytest.mark.parametrize('published', [False, True])
def test_state_dict_round_trip(published, assign):
    saved = nn.Sequential(nn.Linear(2, 2), randomised(shared_numerator=False))
    state = published_state_dict(saved) if published else saved.state_dict()
    shapes = {key: value.shape for key, value in state.items()}
    model = nn.Sequential(nn.Linear(2, 2), GroupRational(shared_numerator=False))
    model.load_state_dict(state, assign=assign)
    assert {key: value.shape for key, value in state.items()} == shapes  # the caller's dict stays
    assert same(model, saved)
    assert all(isinstance(p, nn.Parameter) and p.dim() == 1 for p in model[1].parameters())


def test_published_shapes():
    model = nn.Sequential(nn.Linear(2, 2), GroupRational())
    shapes = {'0.weight': (2, 2), '0.bias': (2,)}
    shapes |= {'1.weight_numerator': (1, 6), '1.weight_denominator': (8, 4)}
    state = published_state_dict(model)
    assert {key: tuple(value.shape) for key, value in state.items()} == shapes
    given = {'1.weight_numerator': torch.ones(6), '1.weight_denominator': torch.ones(16)}
    shapes = [tuple(value.shape) for value in published_state_dict(model, given).values()]
    assert shapes == [(1, 6), (16,)]  # what does not fit stays as it is


def test_published_shapes_of_a_model_in_wrappers():
    """Wrappers give modules other names than their parameters have in state dicts."""
    model = nn.Sequential(checkpoint_wrapper(GroupRational()))
    assert published_state_dict(model)['0.weight_denominator'].shape == (8, 4)


@pytest.mark.parametrize('clone', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_load_and_save_alike(clone):
    model = nn.Sequential(randomised())
    copied = clone(model)
    assert same(copied, model)
    copied.load_state_dict(published_state_dict(nn.Sequential(GroupRational())))
    assert same(copied, nn.Sequential(GroupRational()))
    assert not same(copied, model)


@pytest.mark.parametrize('wrong', [(4, 8), (4, 4), (16,), (1, 32), (32, 1), ()])
def test_other_shapes_are_errors(wrong):
    state = {**GroupRational().state_dict(), 'weight_denominator': torch.zeros(wrong)}
    message = (
        rf'weight_denominator: the checkpoint has {re.escape(str(wrong))}, the model has \(8, 4\); '
        'num_groups, order and shared_numerator set it'
    )
    with pytest.raises(RuntimeError, match=message):
        GroupRational().load_state_dict(state)


@pytest.mark.parametrize('published', [False, True])
def test_mm_saves_and_loads(published, tmp_path):
    checkpoint = pytest.importorskip('mmengine.runner.checkpoint')
    model = nn.Sequential(randomised())
    state = published_state_dict(model) if published else checkpoint.get_state_dict(model)
    checkpoint.save_checkpoint({'state_dict': state}, str(tmp_path / 'a.pth'))
    loaded = nn.Sequential(GroupRational())
    checkpoint.load_checkpoint(loaded, str(tmp_path / 'a.pth'), strict=True)
    assert same(loaded, model)


def test_averages_of_weights():
    model = nn.Sequential(randomised())
    averages = [torch.optim.swa_utils.AveragedModel(model)]
    if find_spec('mmengine'):
        from mmengine.model import StochasticWeightAverage

        averages.append(StochasticWeightAverage(model))
    before = model[0].weight_denominator.detach().clone()
    for average in averages:
        average.update_parameters(model)
    nn.init.normal_(model[0].weight_denominator)
    expected = (before + model[0].weight_denominator) / 2
    for average in averages:
        average.update_parameters(model)
        torch.testing.assert_close(average.module[0].weight_denominator, expected)


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
        (-1, (2, 16, 24), -1),  # tokens, as transformers have them
        (1, (2, 16, 24), 1),
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
    assert torch.equal(layer(x), rational(x, layer.numerator, layer.denominator, expected))


def test_channels_of_three_dimensions_are_not_guessed():
    message = (
        r'x \(2, 16, 24\).*channel_dim=-1 for tokens \[B, N, C\], channel_dim=1 for \[B, C, L\]'
    )
    with pytest.raises(ValueError, match=message):
        GroupRational()(torch.randn(2, 16, 24))


@pytest.mark.parametrize('channel_dim', [None, -1, 1])
def test_is_traced_by_fx(channel_dim):
    model = nn.Sequential(nn.Linear(16, 16), GroupRational(channel_dim=channel_dim))
    nn.init.normal_(model[1].weight_denominator)  # groups that differ
    traced = torch.fx.symbolic_trace(model)
    for shape in ((2, 16), (2, 16, 4, 16)):
        x = torch.randn(shape)
        for each in (traced, pickle.loads(pickle.dumps(traced))):
            assert torch.equal(each(x), model(x))
    traced(x).sum().backward()
    assert model[1].weight_numerator.grad.any()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(('order', 'limit'), [((5, 4), 5.0e7), ((8, 8), 6.5e4)])
def test_where_powers_overflow(order, limit, dtype, device):
    """As the docstring says: |x|^m beyond the largest number, of fp64 for inputs of fp64 alone."""
    m, n = order
    layer = GroupRational(1, ([0] * m + [1], [0] * (n - 1) + [1]), order, channel_dim=-1)
    layer = layer.to(device, torch.float64 if dtype == torch.float64 else torch.float32)
    limit = torch.finfo(torch.float64).max ** (1 / m) if dtype == torch.float64 else limit
    largest = torch.finfo(dtype).max
    for factor in (0.98, 1.1):
        x = torch.tensor([[factor * limit]], dtype=torch.float64, device=device)
        if x.item() <= largest:
            y = layer(x.to(dtype).requires_grad_())
            # The result itself may be beyond the dtype of x.
            finite = y.isfinite().all() or (dtype == torch.float16 and y.isinf().all())
            assert finite == (factor < 1)


@pytest.mark.parametrize(('order', 'limit'), [((5, 4), 65_504.0), ((8, 8), 6.0e4)])
def test_gradients_are_finite_below_the_limit(order, limit, device):
    layer = GroupRational(4, 'gelu', order).to(device)
    x = torch.tensor([[limit, -limit, 1.0, 0.0]], device=device, requires_grad=True)
    layer(x).sum().backward()
    for gradient in (x.grad, layer.weight_numerator.grad, layer.weight_denominator.grad):
        assert gradient.isfinite().all()


def test_layers_of_flashkat_load():
    layer, twin = GroupRational(), GroupRational()
    nn.init.normal_(layer.weight_numerator)
    nn.init.normal_(layer.weight_denominator)
    theirs = {'numerator_v': layer.numerator, 'denominator_v': layer.denominator}
    twin.load_state_dict(theirs)
    for got, want in zip(twin.parameters(), layer.parameters(), strict=True):
        assert torch.equal(got, want)
    with pytest.raises(RuntimeError, match=r'weight_denominator: the checkpoint has \(4, 4\)'):
        twin.load_state_dict({**theirs, 'denominator_v': torch.zeros(4, 4)})


@pytest.mark.parametrize(('channels', 'divisor'), [(4, 4), (18, 6), (13, 1)])
def test_channels_that_the_groups_do_not_divide(channels, divisor):
    x = torch.zeros(2, channels, 5, 5)
    with pytest.raises(
        ValueError, match=f'the {channels} channels.* 8 groups.* num_groups={divisor} of'
    ):
        GroupRational()(x)
    assert GroupRational(divisor)(x).shape == x.shape


def test_published_variance_gains():
    """Gains as the KAT paper lists them; those of fits are close."""
    for name, gain in dict(identity=1.0, relu=2.0, gelu=2.3568, swish=2.8178).items():
        layer = GroupRational(1, name, channel_dim=0).double()
        for function in (FUNCTIONS[name], layer):
            assert variance_gain(function) == pytest.approx(gain, rel=5e-3)


def test_the_variance_gain_of_groups_is_that_of_their_mean_square():
    def function(z):
        return torch.stack([z, 2 * z, 3 * z], 1)

    assert variance_gain(function) == pytest.approx(3 / 14)


def test_a_function_that_is_zero_has_no_variance_gain():
    with pytest.raises(ValueError, match='zero everywhere has no variance gain'):
        variance_gain(torch.zeros_like)


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
