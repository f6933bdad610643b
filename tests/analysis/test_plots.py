"""Pictures of unusual numbers: one or many heads, no start, losses that are no numbers."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from kat_mm.analysis.plot_attention import plot_attention
from kat_mm.analysis.plot_landscape import plot_landscape
from kat_mm.analysis.plot_parameters import Kind, plot_histograms
from kat_mm.analysis.plot_spectra import plot_effective_ranks, plot_singular_values
from kat_mm.analysis.plot_units import Curves, plot_units

WIDEST = 1700  # pixels


@pytest.fixture
def png(tmp_path):
    """Where to draw; what is drawn must be of a size that a page takes, with colours in it."""
    path = tmp_path / 'picture.png'
    yield path
    picture = Image.open(path)
    assert 400 < picture.width < WIDEST
    assert len(np.unique(np.asarray(picture.convert('L')))) > 20


@pytest.mark.parametrize('heads', [1, 12])
@pytest.mark.parametrize('signs', [True, False])
def test_attention(png, heads, signs):
    rows = torch.randn(2, heads, 4, 6, dtype=torch.float64)
    rows = rows if signs else rows.abs()
    rows[0, :, 2:] = torch.nan
    picture = np.random.default_rng(0).integers(0, 256, (31, 47, 3)).astype(np.uint8)
    plot_attention(png, 'title', picture, 8, [(0, 0), (3, 5)], rows, list(range(heads)))


def test_attention_without_weights(png):
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    plot_attention(png, 'title', picture, 8, [(0, 0)], torch.zeros(1, 2, 4, 4), [0, 1])


@pytest.mark.parametrize('blocks', [1, 12])
def test_spectra(png, blocks):
    ranks = {name: [1.0, 20.0] for name in ('scores', 'weights', 'softmax')}
    plot_effective_ranks(png, [{'effective_rank': ranks, 'tokens': [25, 196]}] * blocks, 'title')
    values = torch.rand(3, 2, 9, dtype=torch.float64).sort(-1, descending=True).values
    values[..., -1] = 0
    curves = [dict.fromkeys(ranks, values)] * blocks
    plot_singular_values(png, curves, [f'block {i}' for i in range(blocks)], 'title')


@pytest.mark.parametrize('start', [True, False])
def test_units_of_different_numbers_of_heads(png, start):
    x = torch.linspace(-8, 8, 50)

    def curves(within):
        y = torch.randn(2, 50)
        return Curves('block 0, head 0', ('most', 'median'), y, y + 0.1 if start else None, within)

    plot_units(png, x, [[curves(5.0), curves(20.0)], [curves(None)]], 'title')


def test_histograms_of_constants_and_single_entries(png):
    kinds = [
        Kind('norms: scales', torch.ones(20, dtype=torch.float64), torch.ones(20)),
        Kind('KArAt: gates', torch.tensor([0.1]), None),
        Kind('zeros', torch.zeros(3_000), None),
        Kind('neck: weights', torch.randn(2_000_000), torch.randn(2_000_000)),
        Kind('biases', torch.randn(50), torch.zeros(50)),
    ]
    plot_histograms(png, kinds, 'title')


@pytest.mark.parametrize('odd', [1e9, math.nan, math.inf, None])
def test_landscapes_that_explode(png, odd):
    a, b = torch.linspace(-1, 2, 7).double(), torch.linspace(-1, 1, 7).double()
    losses = a[:, None] ** 2 + b**2
    if odd is None:
        losses[:] = torch.nan
    else:
        losses[0, 0] = odd
    path = torch.tensor([[1.5, 0.5], [1, 0], [0, 0]]).double()
    plot_landscape(png, (a, b), losses, path, [0, 5, 10], (0.9, 0.1), 'title')
