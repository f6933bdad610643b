"""The simple feature pyramid."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kat_mm.models import SimplePyramid
from kat_mm.models.pyramid import LayerNorm2d


@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), in_stride=st.sampled_from([4, 8, 16, 32]))
def test_level_sizes(height, width, in_stride):
    pyramid = SimplePyramid(16, 8, in_stride)
    with torch.no_grad():
        maps = pyramid(torch.randn(2, 16, height, width))
    for y, stride in zip(maps, (4, 8, 16, 32), strict=True):
        sizes = (math.ceil(n * in_stride / stride) for n in (height, width))
        assert y.shape == (2, 8, *sizes)
        assert y.is_contiguous()


def test_layers_are_those_of_vitdet():
    pyramid = SimplePyramid(32, 8)
    kinds = [[type(m).__name__ for m in level] for level in pyramid.levels.values()]
    tail = ['Conv2d', 'LayerNorm2d', 'Conv2d', 'LayerNorm2d']
    assert kinds == [
        ['ConvTranspose2d', 'LayerNorm2d', 'GELU', 'ConvTranspose2d', *tail],
        ['ConvTranspose2d', *tail],
        tail,
        ['MaxPool2d', *tail],
    ]
    widths = [m.out_channels for m in pyramid.levels['stride4'] if hasattr(m, 'out_channels')]
    assert widths == [16, 8, 8, 8]


def test_image_size_crops():
    pyramid = SimplePyramid(16, 8)
    maps = pyramid(torch.randn(1, 16, 3, 3), (37, 41))
    assert [tuple(y.shape[-2:]) for y in maps] == [(10, 11), (5, 6), (3, 3), (2, 2)]


def test_layer_norm_over_channels():
    norm = LayerNorm2d(6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 6, 3, 5)
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
    expected = expected * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), expected)


def test_without_norms_convolutions_have_biases():
    plain = SimplePyramid(16, 8, norm=None)
    assert not any(isinstance(m, nn.LayerNorm) for m in plain.modules())
    assert plain.levels['stride16'][0].bias is not None


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'in_stride': 14}, 'stride 4 from a map of stride 14'),
        ({'in_stride': 12}, 'power of two'),
        ({'out_channels': (8, 8)}, r'out_channels \(8, 8\)'),
        ({'num_outs': 3}, 'num_outs=3'),
        ({'in_channels': 10}, '10 channels cannot be halved 2 times'),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SimplePyramid(**{'in_channels': 16, **kwargs})
