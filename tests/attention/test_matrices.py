"""The matrices of attentions, to be looked at, against what the attentions compute."""

import pytest
import torch

from kat_mm.attention import ATTENTIONS
from kat_mm.attention.operator import FORMS
from kat_mm.attention.projections import join_heads, split_heads
from kat_mm.attention.windows import Windows

DIMS, HEADS, PREFIX = 12, 3, 2
OPTIONS = [
    dict(type='softmax'),
    dict(type='softmax', rel_pos=True),
    *(dict(type='KArAt', form=form) for form in FORMS),
    *(dict(type='KArAt', basis=basis) for basis in ('rational', 'chebyshev', 'morlet')),
    *(dict(type='KArAt', simplex=True, form=form) for form in FORMS),
    *(dict(type='KArAt', base='softmax', form=form) for form in FORMS),
    dict(type='KArAt', base='softmax', simplex=True),
    dict(type='KArAt', published_scales=True),
    dict(type='KArAt', base='identity'),
]


def attention(options, grid, window_size, prefix):
    """An attention with drawn parameters, so that no gate or bias is zero."""
    torch.manual_seed(0)
    layer = ATTENTIONS.build(options, DIMS, HEADS, grid, window_size, prefix)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return layer.double().eval()


@pytest.mark.parametrize('window_size', [0, 4])
@pytest.mark.parametrize('grid', [(4, 4), (3, 2)], ids=['own', 'smaller'])
@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_weights_times_values_are_what_attend_gives(options, grid, window_size):
    prefix = 0 if window_size else PREFIX
    layer = attention(options, (4, 4), window_size, prefix)
    tokens = prefix + grid[0] * grid[1]
    x = torch.randn(2, tokens, 3 * DIMS, dtype=torch.float64)
    q, k, v = split_heads(x, HEADS)
    with torch.no_grad():
        scores, weights = layer.matrices(x, grid)
        assert scores.shape == weights.shape == (2, HEADS, tokens, tokens)
        if not options.get('rel_pos'):
            torch.testing.assert_close(scores, q @ k.mT / (DIMS // HEADS) ** 0.5)
        torch.testing.assert_close(join_heads(weights @ v), layer.attend(x, grid))
        if options['type'] == 'softmax' or (options.get('simplex') and layer.gate is None):
            assert weights.min() >= 0
            torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_tokens_of_half_precision_have_matrices_in_fp32():
    for options in (dict(type='softmax', rel_pos=True), dict(type='KArAt', base='softmax')):
        layer = attention(options, (4, 4), 0, 0).float()
        x = torch.randn(1, 16, 3 * DIMS)
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
            half = layer.matrices(x.bfloat16(), (4, 4))
        with torch.no_grad():
            wide = layer.matrices(x.bfloat16().float(), (4, 4))
        assert all(m.dtype is torch.float32 for m in half)
        torch.testing.assert_close(half.weights, wide.weights, rtol=2e-2, atol=2e-2)


def test_windows_of_a_map_are_the_matrices_of_each():
    layer = attention(dict(type='KArAt'), (2, 2), 2, 0)
    windows = Windows((3, 4), 2)
    x = torch.randn(1, 12, DIMS, dtype=torch.float64)
    with torch.no_grad():
        projected = layer.project(windows.order(x))
        parts = []
        for part, tile in zip(windows.split(projected), windows.tiles, strict=True):
            part = part.reshape(-1, tile.height * tile.width, 3 * DIMS)
            _, weights = layer.matrices(part, tile.window)
            parts.append(join_heads(weights @ split_heads(part, HEADS)[2]).reshape(1, -1, DIMS))
        y = windows.restore(layer.output(torch.cat(parts, 1)))
        torch.testing.assert_close(y, layer(x, (3, 4)))
