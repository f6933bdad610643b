"""Position embeddings: resizing and adapting those of checkpoints."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kat_mm.models.pos_embed import adapt_pos_embed, resize_matrix, resize_pos_embed

size = st.integers(1, 24)


@settings(max_examples=60, deadline=None)
@given(old=st.tuples(size, size), new=st.tuples(size, size), prefix=st.integers(0, 2))
def test_resizing_equals_torchs_antialiased_bicubic_filter(old, new, prefix):
    torch.manual_seed(0)
    embed = torch.randn(1, prefix + old[0] * old[1], 4)
    grid = embed[:, prefix:].unflatten(1, old).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=new, mode='bicubic', antialias=True)
    resized = resize_pos_embed(embed, old, new, prefix)
    assert torch.equal(resized[:, :prefix], embed[:, :prefix])
    torch.testing.assert_close(
        resized[:, prefix:], expected.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4
    )


def test_weights_add_up_to_one():
    for old, new in [(14, 50), (14, 7), (1, 5), (5, 1), (14, 14)]:
        torch.testing.assert_close(resize_matrix(old, new).sum(1), torch.ones(new))
    torch.testing.assert_close(resize_matrix(6, 6), torch.eye(6))


def test_same_grid_is_returned_itself_and_dtype_is_kept():
    embed = torch.randn(1, 17, 8)
    assert resize_pos_embed(embed, (4, 4), (4, 4), 1) is embed
    assert resize_pos_embed(embed.bfloat16(), (4, 4), (2, 8), 1).dtype == torch.bfloat16


def test_autocast_does_not_touch_positions():
    embed = torch.randn(1, 17, 8)
    expected = resize_pos_embed(embed, (4, 4), (6, 5), 1)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(resize_pos_embed(embed, (4, 4), (6, 5), 1), expected)


def test_gradients_reach_the_embeddings():
    embed = torch.randn(1, 17, 8, requires_grad=True)
    resize_pos_embed(embed, (4, 4), (6, 5), 1).sum().backward()
    assert embed.grad.abs().min() > 0


def test_adapting_a_checkpoint():
    embed = torch.randn(1, 17, 8)
    assert torch.equal(adapt_pos_embed(embed, True, (4, 4), 1), embed)
    assert torch.equal(adapt_pos_embed(embed, True, (4, 4), 0), embed[:, 1:])
    bigger = adapt_pos_embed(embed, True, (6, 8), 1)
    assert torch.equal(bigger, resize_pos_embed(embed, (4, 4), (6, 8), 1))
    # No position for the class token, as in models with registers.
    without = adapt_pos_embed(embed[:, 1:], True, (4, 4), 1)
    assert torch.equal(without[:, 1:], embed[:, 1:])
    assert not without[:, 0].any()
    # A grid that is not square, and equal to the model's.
    assert adapt_pos_embed(torch.randn(1, 13, 8), True, (3, 4), 0).shape == (1, 12, 8)
    with pytest.raises(ValueError, match=r'\(1, 13, 8\) holds 13 positions.*4 x 4'):
        adapt_pos_embed(torch.randn(1, 13, 8), True, (4, 4), 0)
