"""The GR-KAN layer: its variance-preserving start and its use in mm."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kat_mm.models import GRKAN
from kat_mm.rational.coefficients import FITS, FUNCTIONS, variance_gain


def variance_ratios(act_init, seeds=16, dims=192, hidden=768, tokens=32):
    """Ratios of output to input variance of fc1, of fc2 and of the whole layer.

    They are means over draws of the weights. Functions that are positive throughout, such as the
    sigmoid, need many: most of an output's variance is then that of a constant per channel.
    """
    ratios = torch.zeros(3)
    layer = GRKAN(dims, hidden, act_init=act_init, add_identity=False)
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
    layer = GRKAN(16, 16 * ratio, num_groups=groups)
    x = torch.randn(*shape, 16, requires_grad=True)
    y = layer(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad.shape == x.shape


def test_identity_connection_as_in_mms_ffn():
    torch.manual_seed(0)
    layer = GRKAN(16, 32)
    x, identity = torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    layer.add_identity = False
    branch = layer(x)
    layer.add_identity = True
    torch.testing.assert_close(layer(x), x + branch)
    torch.testing.assert_close(layer(x, identity), identity + branch)


def test_drop_and_dropout_layer():
    layer = GRKAN(16, 32, ffn_drop=1.0, add_identity=False).train()
    assert not layer(torch.randn(4, 16)).any()
    assert layer.eval()(torch.randn(4, 16)).any()
    pytest.importorskip('mmcv')
    import mmcv.cnn  # noqa: F401, registers DropPath

    layer = GRKAN(16, 32, dropout_layer={'type': 'DropPath', 'drop_prob': 0.5})
    assert type(layer.dropout_layer).__name__ == 'DropPath'


def test_serves_as_the_ffn_of_an_mm_transformer_layer():
    transformer = pytest.importorskip('mmcv.cnn.bricks.transformer')
    layer = transformer.BaseTransformerLayer(
        attn_cfgs={'type': 'MultiheadAttention', 'embed_dims': 16, 'num_heads': 2},
        ffn_cfgs={
            'type': 'GRKAN',
            'embed_dims': 16,
            'feedforward_channels': 32,
            'num_fcs': 2,
            'ffn_drop': 0.0,
            'act_cfg': {'type': 'ReLU', 'inplace': True},
        },
        operation_order=('self_attn', 'norm', 'ffn', 'norm'),
        norm_cfg={'type': 'LN'},
    )
    assert isinstance(layer.ffns[0], GRKAN)
    layer(torch.randn(5, 2, 16)).sum().backward()
    assert layer.ffns[0].act1.weight_denominator.grad is not None


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'embed_dims': 12}, 'num_groups=8 does not divide embed_dims=12'),
        (
            {'embed_dims': 16, 'feedforward_channels': 20},
            'num_groups=8 does not divide feedforward_channels=20',
        ),
        ({'embed_dims': 16, 'num_groups': 0}, 'num_groups=0'),
        ({'embed_dims': 16, 'num_fcs': 3}, 'num_fcs=3'),
        ({'embed_dims': 16, 'act_init': ('gelu',)}, 'act_init must be a pair'),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        GRKAN(**kwargs)


def test_is_a_plain_module():
    # mm's init_weights only descends into modules that have the method: the start must stay.
    assert isinstance(GRKAN(16), nn.Module)
    assert not hasattr(GRKAN(16), 'init_weights')
