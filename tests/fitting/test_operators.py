"""Fits of operators against numpy's least squares and alternating least squares."""

import numpy as np
import pytest
import torch

from kat_mm.attention.karat import KArAt
from kat_mm.errors import ConfigError
from kat_mm.fitting.operators import Moments, check_fittable, features, fit_operator

HEADS, GRID, PREFIX, COUNT, DIMS = 2, (2, 2), 1, 5, 4
ROWS = 400


def operator(seed=0, **options):
    torch.manual_seed(seed)
    layer = KArAt(HEADS * DIMS, HEADS, GRID, 0, PREFIX, **{'rank': 3, **options})
    return layer.operator.double()


def data(seed=1, images=ROWS // COUNT):
    torch.manual_seed(seed)
    q, k, v = torch.randn(3, images, HEADS, COUNT, DIMS, dtype=torch.float64)
    return q @ k.mT * DIMS**-0.5, v


def moments(op, scores, weights, values):
    result = Moments(op)
    result.add(scores[:10], weights[:10], values[:10])
    result.add(scores[10:], weights[10:], values[10:])
    return result


def weights_of(op, scores):
    """The weights [B, heads, n, N] that an operator gives, by its forward on unit vectors."""
    fit = op._fitted_to(GRID, torch.float64)
    inner, outer = op.scales(COUNT)
    rows = op._rows(fit, None, inner)(scores)
    return (rows @ op.weight.mT if op.form == 'w_phi' else rows) * outer


def fitted(op, scores, wanted, values, ridge=1e-12):
    sums = moments(op, scores, wanted, values)
    return fit_operator(op, [(sums, sums)], (ridge,))


def loss(op, scores, wanted, values):
    """The objective, by loops: the mean over images of V V^T in the place of each one's."""
    metric = torch.einsum('bhnd,bhmd->hnm', values, values)
    rest = (weights_of(op, scores) - wanted).transpose(0, 1).flatten(1, 2)  # [heads, rows, N]
    whole = wanted.transpose(0, 1).flatten(1, 2)
    squares = [torch.einsum('hrn,hnm,hrm->h', x, metric, x) for x in (rest, whole)]
    return (squares[0] / squares[1]).sqrt()


@pytest.mark.parametrize(
    'options',
    [
        *({}, {'form': 'phi'}, {'basis': 'b_spline'}, {'basis': 'chebyshev', 'form': 'phi'}),
        *({'published_scales': True}, {'base': 'identity', 'basis': {'grid_size': 1}}),
    ],
    ids=str,
)
def test_recovers_an_operator(options):
    source, target = operator(**options), operator(5, **options)
    scores, values = data(images=300)
    wanted = weights_of(source, scores).detach()
    solution = fitted(target, scores, wanted, values)
    fresh = data(7)[0] / 2  # where there were scores, as splines are fitted there alone
    scale = wanted.square().mean().sqrt()
    assert (weights_of(target, fresh) - weights_of(source, fresh)).abs().max() < 1e-6 * scale
    assert max(solution.errors) < 1e-6
    v = torch.randn(len(fresh), HEADS, COUNT, DIMS, dtype=torch.float64)
    q, k = torch.randn(2, len(fresh), HEADS, COUNT, DIMS, dtype=torch.float64)
    q = q / 2
    torch.testing.assert_close(target(q, k, v, GRID), source(q, k, v, GRID), rtol=1e-5, atol=1e-6)


def test_full_rank_is_numpys_least_squares():
    op = operator(form='phi')
    scores, values = data()
    wanted = scores.softmax(-1)
    solution = fitted(op, scores, wanted, values)
    found = weights_of(op, scores)
    for h in range(HEADS):
        f = features(op, scores[:, h]).flatten(0, 1).numpy()
        assert f.shape == (ROWS, COUNT * 6)
        w = wanted[:, h].flatten(0, 1).numpy()
        slow, *_ = np.linalg.lstsq(f, w, rcond=None)
        np.testing.assert_allclose(found[:, h].detach().flatten(0, 1), f @ slow, atol=1e-8)
    torch.testing.assert_close(
        torch.tensor(solution.errors, dtype=torch.float64), loss(op, scores, wanted, values)
    )


@pytest.mark.parametrize('rank', [1, 2, 3])
def test_no_other_operator_of_this_rank_is_better(rank):
    """Alternating least squares in the same metric, from many starts, ends where we are."""
    op = operator(rank=rank)
    scores, values = data()
    wanted = scores.softmax(-1)
    fitted(op, scores, wanted, values)
    ours = loss(op, scores, wanted, values)
    metric = torch.einsum('bhnd,bhmd->hnm', values, values)
    for h in range(HEADS):
        f = features(op, scores[:, h]).flatten(0, 1)
        root = torch.linalg.cholesky(metric[h])  # |x^T root|^2 = x^T metric x
        y = wanted[:, h].flatten(0, 1) @ root
        least = torch.inf
        for seed in range(10):
            torch.manual_seed(seed)
            w = torch.randn(rank, COUNT, dtype=torch.float64)
            for _ in range(200):
                a = torch.linalg.lstsq(f, y @ torch.linalg.pinv(w)).solution
                w = torch.linalg.lstsq(f @ a, y).solution
            least = min(least, ((y - f @ a @ w).norm() / y.norm()).item())
        assert ours[h].item() == pytest.approx(least, rel=1e-4)


def test_error_falls_with_rank_and_functions():
    scores, values = data(images=400)
    wanted = scores.softmax(-1)

    def error(**options):
        return max(fitted(operator(**options), scores, wanted, values).errors)

    by_rank = [error(rank=r) for r in (1, 2, 4, COUNT)]
    assert by_rank == sorted(by_rank, reverse=True)
    assert by_rank[0] > 1.2 * by_rank[-1]
    assert by_rank[-1] == pytest.approx(error(form='phi'), rel=1e-4)
    by_terms = [error(form='phi', basis={'grid_size': g}) for g in (1, 2, 3, 5)]
    assert by_terms == sorted(by_terms, reverse=True)
    assert by_terms[0] > 1.1 * by_terms[-1]


def test_more_sums_than_tokens_leave_some_out():
    op = operator(rank=COUNT + 2)
    scores, values = data()
    before = op.units.coefficients[:, COUNT:].clone()
    fitted(op, scores, scores.softmax(-1), values)
    assert not op.weight[..., COUNT:].any()
    assert torch.equal(op.units.coefficients[:, COUNT:], before)


def test_held_out_rows_choose_the_ridge():
    """With fewer rows than functions, no ridge at all fits the rows and nothing else."""
    op = operator(form='phi')
    scores, values = data(images=4)  # 20 rows of 30 functions
    other, other_values = data(3, images=100)
    few = moments(op, scores, scores.softmax(-1), values)
    many = moments(op, other, other.softmax(-1), other_values)
    solution = fit_operator(op, [(few, many)], (1e-10, 1e-1))
    assert solution.ridges == [1e-1] * HEADS
    chosen = loss(op, other, other.softmax(-1), other_values)
    torch.testing.assert_close(torch.tensor(solution.errors, dtype=torch.float64), chosen)
    loose = fit_operator(op, [(few, many)], (1e-10,))
    assert all(a > b for a, b in zip(loose.errors, solution.errors, strict=True))
    assert min(loose.conditions) > 1e8


def test_each_head_chooses_how_scores_are_scaled():
    op = operator()
    scores, values = data(images=200)
    wanted = scores.softmax(-1)
    alternatives = []
    for scale in (30.0, 1.0, 0.3):
        sums = moments(op, scores * scale, wanted, values)
        alternatives.append((sums, sums))
    together = fit_operator(op, alternatives)
    alone = [fit_operator(op, [one]).errors for one in alternatives]
    assert together.errors == [min(errors) for errors in zip(*alone, strict=True)]
    assert together.choices == [errors.index(min(errors)) for errors in zip(*alone, strict=True)]
    assert 0 not in together.choices


def test_parameters_keep_the_size_that_they_are_drawn_with():
    op = operator(rank=2)
    scores, values = data()
    fitted(op, scores, scores.softmax(-1), values)
    sizes = op.units.coefficients.square().mean((2, 3))
    torch.testing.assert_close(sizes, torch.ones_like(sizes))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'basis': 'rational'}, 'Rational functions are not linear in their coefficients'),
        ({'basis': 'morlet'}, 'Morlet functions are not linear'),
        ({'form': 'phi_w'}, "form='phi_w' puts functions behind sums"),
        ({'form': 'phi_phi'}, 'w_phi and phi can be fitted'),
        ({'simplex': True}, 'the projection on the simplex is not linear'),
    ],
)
def test_what_cannot_be_fitted(options, message):
    with pytest.raises(ConfigError, match=message):
        check_fittable(operator(**options))
