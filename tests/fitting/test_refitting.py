"""W of an operator, fitted to outputs, against numpy's least squares over all of them."""

import numpy as np
import pytest
import torch

from kat_mm.attention.karat import KArAt
from kat_mm.fitting.refitting import OutputMoments, can_refit, refit_weight

HEADS, GRID, COUNT, DIMS = 2, (2, 2), 5, 4


def operator(**options):
    torch.manual_seed(0)
    return KArAt(HEADS * DIMS, HEADS, GRID, 0, 1, **{'rank': 2, **options}).operator.double()


def data(seed, images=40):
    torch.manual_seed(seed)
    q, k, v = torch.randn(3, images, HEADS, COUNT, DIMS, dtype=torch.float64)
    scores = q @ k.mT / DIMS**0.5
    return (q, k, v), (scores, v, scores.softmax(-1) @ v)


@pytest.mark.parametrize('options', [{}, {'base': 'silu'}], ids=str)
def test_is_numpys_least_squares(options):
    op = operator(**options)
    qkv, rows = data(1)
    moments = OutputMoments(op)
    for part in zip(*(x.split(15) for x in rows), strict=True):
        moments.add(*part)

    def errors():
        y = op(*qkv, GRID)
        return ((y - rows[2]).square().sum((0, 2, 3)) / rows[2].square().sum((0, 2, 3))).sqrt()

    before = errors()
    for h in range(HEADS):
        assert moments.error(h, op.weight[h]) == pytest.approx(before[h].item())
    # The outputs for each entry of W alone.
    columns = []
    old = op.weight.detach().clone()
    with torch.no_grad():
        for n in range(COUNT):
            for p in range(2):
                op.weight.zero_()
                op.weight[:, n, p] = 1
                columns.append(op(*qkv, GRID))
        op.weight.copy_(old)
    refit_weight(op, moments, moments, (1e-12,))
    for h in range(HEADS):
        matrix = torch.stack([c[:, h].flatten() for c in columns], -1).numpy()
        slow, *_ = np.linalg.lstsq(matrix, rows[2][:, h].flatten().numpy(), rcond=None)
        np.testing.assert_allclose(op.weight[h].detach().flatten(), slow, rtol=1e-4, atol=1e-6)
    assert (errors() < before).all()


def test_stays_where_held_out_images_say_so():
    op = operator()
    few, other = OutputMoments(op), OutputMoments(op)
    few.add(*data(1, 1)[1])
    other.add(*data(2, 100)[1])
    op.weight.data.zero_()
    for h in range(HEADS):
        system = other.system(h) + 1e-9 * torch.eye(COUNT * 2, dtype=torch.float64)
        best = torch.linalg.solve(system, other.cross[h].flatten())
        op.weight.data[h] = best.view(COUNT, 2)
    best = op.weight.clone()
    refit_weight(op, few, other)
    assert torch.equal(op.weight, best)


def test_no_output_is_better_than_a_wrong_one():
    """Where the fitted images say nothing of others, W shrinks towards zero."""
    op = operator()
    few, other = OutputMoments(op), OutputMoments(op)
    few.add(*data(1, 2)[1])
    scores, v, o = data(2, 100)[1]
    other.add(scores, v, -o)
    refit_weight(op, few, few, (1e-6,))
    wrong = [other.error(h, op.weight[h]) for h in range(HEADS)]
    refit_weight(op, few, other, (1e-6, 1e8))
    assert min(wrong) > 1.01
    for h in range(HEADS):
        assert other.error(h, op.weight[h]) == pytest.approx(1, abs=1e-3)


def test_sizes():
    assert can_refit(operator())
    assert not can_refit(operator(form='phi'))
    assert not can_refit(KArAt(8, 2, (30, 30)).operator)
