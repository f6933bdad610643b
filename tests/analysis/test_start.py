"""Starts that are told from other draws."""

import pytest
import torch

from kat_mm.analysis.start import correlation, is_the_start, known_start


def test_correlation_is_that_of_numpy():
    x, y = torch.randn(2, 50)
    assert correlation(x, y) == pytest.approx(torch.corrcoef(torch.stack([x, y]))[0, 1].item())
    assert correlation(torch.ones(50), y) is None
    assert correlation(torch.full((50,), 0.1), torch.full((50,), 0.2)) is None


def test_other_draws_are_no_start():
    for seed in range(200):
        torch.manual_seed(seed)
        assert is_the_start(*torch.randn(2, 2000)) is False


@pytest.mark.parametrize('step', [0.0, 0.5, 2.0])
def test_a_start_is_known_after_large_steps(step):
    start = torch.randn(2000)
    assert is_the_start(start, start + step * torch.randn(2000)) is True


def test_what_tells_nothing():
    assert is_the_start(torch.randn(10), torch.randn(10)) is None
    assert is_the_start(torch.ones(2000), torch.randn(2000)) is None
    assert is_the_start(torch.randn(2000), torch.randn(2, 1000)) is False


def test_groups_are_known_together():
    start = {
        'drawn.a': torch.randn(2000),
        'drawn.b': torch.randn(50, 40),
        'lost.a': torch.randn(2000),
        'lost.b': torch.randn(2000),
        'norm': torch.ones(2000),
    }
    trained = {name: value + 0.1 * torch.randn_like(value) for name, value in start.items()}
    trained['lost.b'] = torch.randn(2000)
    groups = [['drawn.a', 'drawn.b'], ['lost.a', 'lost.b'], ['norm']]
    assert set(known_start(start, trained, groups)) == {'drawn.a', 'drawn.b', 'norm'}
    assert known_start(start, trained, groups[1:]) == {}
