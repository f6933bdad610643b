"""Effective ranks of known matrices, and spectra of attentions against numpy's."""

import math

import numpy as np
import pytest
import torch

from kat_mm.analysis.capture import Attended, attended
from kat_mm.analysis.spectra import BlockSpectra, effective_rank
from kat_mm.attention import ATTENTIONS
from kat_mm.attention.windows import Windows
from kat_mm.models import KAT


@pytest.mark.parametrize(
    ('values', 'rank'),
    [
        ([3.0, 3.0, 3.0, 3.0], 4.0),
        ([2.0, 0.0, 0.0], 1.0),
        ([0.0, 0.0], 0.0),
        ([1.0, 1.0, 0.0, 0.0], 2.0),
        # Entropy of (3/4, 1/4).
        ([3.0, 1.0], math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))),
    ],
)
def test_effective_rank_of_known_singular_values(values, rank):
    assert effective_rank(torch.tensor(values)).item() == pytest.approx(rank, rel=1e-12)
    assert effective_rank(1e-20 * torch.tensor(values)).item() == pytest.approx(rank, rel=1e-6)


def test_effective_rank_of_known_matrices():
    torch.manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64))
    outer = torch.outer(*torch.randn(2, 7, dtype=torch.float64))
    third = torch.tensor([5, 5, 5, 0, 0, 0, 0], dtype=torch.float64)
    matrices = torch.stack([q, outer, q @ third.diag() @ q])
    ranks = effective_rank(torch.linalg.svdvals(matrices))
    torch.testing.assert_close(ranks, torch.tensor([7.0, 1, 3]).double(), rtol=1e-6, atol=0)


def test_spectra_of_a_block_are_those_of_numpy():
    torch.manual_seed(0)
    layer = ATTENTIONS.build(dict(type='KArAt', base='softmax'), 12, 3, (2, 3), 0, 1)
    torch.nn.init.normal_(layer.gate)
    block, calls = BlockSpectra(), []
    images = [torch.randn(2, 7, 12), torch.randn(1, 7, 12)]
    scores, weights = [], []
    for x in images:
        seen = Attended('attn', layer, x, (2, 3), None)
        block.add(seen, lambda: calls.append(None))
        with torch.no_grad():
            matrices = layer.matrices(layer.project(x), (2, 3))
        scores.append(matrices.scores.double().numpy())
        weights.append(matrices.weights.double().numpy())
    assert len(calls) == 6
    summary = block.summary()
    assert summary['matrices'] == 3
    assert summary['tokens'] == [7]
    softmax = [np.exp(s) / np.exp(s).sum(-1, keepdims=True) for s in scores]
    for name, parts in (('scores', scores), ('weights', weights), ('softmax', softmax)):
        for head in range(3):
            ranks = []
            for matrix in np.concatenate(parts)[:, head]:
                s = np.linalg.svd(matrix, compute_uv=False)
                p = s / s.sum()
                ranks.append(np.exp(-(p * np.log(p.clip(1e-300))).sum()))
            assert summary['effective_rank'][name][head] == pytest.approx(np.mean(ranks), rel=1e-4)
    weights = np.concatenate(weights)
    np.testing.assert_allclose(summary['negative_weights'], (weights < 0).mean((0, 2, 3)))
    np.testing.assert_allclose(summary['row_sums']['mean'], weights.sum(3).mean((0, 2)), rtol=1e-5)
    assert summary['scores']['largest'] == pytest.approx(np.abs(np.concatenate(scores)).max())
    curve = block.curves()['weights']
    assert curve.shape == (3, 3, 7)
    assert (curve[..., 0] == 1).all()


def test_softmax_is_what_softmax_would_give():
    layer = ATTENTIONS.build('softmax', 12, 3, (2, 3), 0, 0)
    block = BlockSpectra()
    block.add(Attended('attn', layer, torch.randn(1, 6, 12), (2, 3), None))
    ranks = block.summary()['effective_rank']
    assert ranks['weights'] == ranks['softmax'] != ranks['scores']


def test_of_windows_the_whole_ones_count():
    layer = ATTENTIONS.build('softmax', 12, 3, (2, 2), 2, 0)
    windows = Windows((5, 4), 2)
    block = BlockSpectra()
    block.add(Attended('attn', layer, torch.randn(1, 20, 12), (5, 4), windows))
    summary = block.summary()
    assert summary['tokens'] == [4]
    assert summary['matrices'] == 4
    assert summary['window'] == [2, 2]


def test_maps_of_several_sizes_have_the_curve_of_the_most():
    model = KAT({'embed_dims': 16, 'num_layers': 1, 'num_heads': 2}, 64).eval()
    block = BlockSpectra()
    for side in (32, 64, 64):
        [seen] = attended(model, lambda side=side: model(torch.randn(1, 3, side, 64)))
        block.add(seen)
    assert block.summary()['tokens'] == [9, 17]
    assert block.summary()['matrices'] == 3
    assert block.curves()['scores'].shape == (2, 2, 17)
