"""The block's branches: drop path."""

import pytest
import torch

from kat_mm.models.block import DropPath


def test_drop_path_statistics():
    torch.manual_seed(0)
    drop = DropPath(0.3).train()
    y = drop(torch.ones(20_000, 2, 3))
    per_image = y[:, 0, 0]
    assert torch.equal(y, per_image[:, None, None].expand_as(y))
    kept = per_image > 0
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.02)
    torch.testing.assert_close(per_image[kept], torch.full((int(kept.sum()),), 1 / 0.7))
    assert y.mean().item() == pytest.approx(1, abs=0.02)


def test_drop_path_is_the_identity_in_evaluation_and_at_zero():
    x = torch.randn(4, 3)
    assert DropPath(0.5).eval()(x) is x
    assert DropPath(0.0).train()(x) is x


def test_drop_path_probability_is_checked():
    for prob in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r'\[0, 1\)'):
            DropPath(prob)
