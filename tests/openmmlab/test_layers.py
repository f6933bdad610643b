"""The GR-KAN layer as a feed-forward network of mm."""

import mmcv.cnn  # noqa: F401, registers DropPath
import pytest
import torch
from mmcv.cnn.bricks import transformer
from torch import nn

from kat_mm.errors import ConfigError
from kat_mm.openmmlab import GRKAN


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
    layer = GRKAN(16, 32, dropout_layer={'type': 'DropPath', 'drop_prob': 0.5})
    assert type(layer.dropout_layer).__name__ == 'DropPath'


def test_serves_as_the_ffn_of_an_mm_transformer_layer():
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


def test_is_a_plain_module():
    # mm's init_weights only descends into modules that have the method: the start must stay.
    assert isinstance(GRKAN(16), nn.Module)
    assert not hasattr(GRKAN(16), 'init_weights')


def test_another_number_of_linear_layers_is_an_error():
    with pytest.raises(ConfigError, match='GRKAN has two linear layers, got num_fcs=3; remove'):
        GRKAN(16, num_fcs=3)
