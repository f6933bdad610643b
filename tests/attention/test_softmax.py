"""Softmax attention: windows, relative positions and the mimetic start."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kat_mm.attention.softmax import SoftmaxAttention


def attention(window_size=0, grid=None, **kwargs):
    torch.manual_seed(0)
    grid = grid or (window_size or 3, window_size or 5)
    layer = SoftmaxAttention(16, 2, grid, window_size, **kwargs).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


def naive(layer, x, grid):
    """Attention with an explicit loop over queries and keys, windows and relative positions."""
    height, width = grid
    prefix = x.shape[1] - height * width
    heads, dims = layer.num_heads, x.shape[2] // layer.num_heads
    q, k, v = layer.qkv(x).chunk(3, -1)
    out = torch.zeros_like(x)

    def place(token):
        return divmod(token - prefix, width) if token >= prefix else None

    def window(token):
        size = layer.window_size
        return tuple(c // size for c in place(token)) if size else None

    def vector(table, distance, size):
        if not layer.window_size and table.shape[0] != 2 * size - 1:
            table = torch.nn.functional.interpolate(
                table.T[None], size=2 * size - 1, mode='linear'
            )[0].T
        return table[distance + (table.shape[0] - 1) // 2]

    for b in range(x.shape[0]):
        for head in range(heads):
            part = slice(head * dims, (head + 1) * dims)
            for i in range(x.shape[1]):
                logits, values = [], []
                for j in range(x.shape[1]):
                    if window(i) != window(j):
                        continue
                    logit = q[b, i, part] @ k[b, j, part] / dims**0.5
                    if layer.rel_pos_h is not None and place(i) and place(j):
                        (yi, xi), (yj, xj) = place(i), place(j)
                        logit = logit + q[b, i, part] @ (
                            vector(layer.rel_pos_h, yi - yj, height)
                            + vector(layer.rel_pos_w, xi - xj, width)
                        )
                    logits.append(logit)
                    values.append(v[b, j, part])
                weights = torch.stack(logits).softmax(0)
                out[b, i, part] = weights @ torch.stack(values)
    return layer.proj(out)


@pytest.mark.parametrize('window_size', [0, 2, 3])
@pytest.mark.parametrize('rel_pos', [False, True])
def test_equals_the_naive_loop(window_size, rel_pos):
    layer = attention(window_size, rel_pos=rel_pos)
    grids = [(3, 5), (4, 2)]
    for grid in grids:
        prefix = 0 if window_size else 1
        x = torch.randn(2, prefix + grid[0] * grid[1], 16)
        with torch.no_grad():
            torch.testing.assert_close(layer(x, grid), naive(layer, x, grid), rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    window_size=st.integers(1, 6),
    rel_pos=st.booleans(),
)
def test_windows_equal_global_attention_masked_to_windows(height, width, window_size, rel_pos):
    layer = attention(window_size, rel_pos=rel_pos)
    x = torch.randn(1, height * width, 16)
    with torch.no_grad():
        y = layer(x, (height, width)).unflatten(1, (height, width))
        x = x.unflatten(1, (height, width))
        for top in range(0, height, window_size):
            for left in range(0, width, window_size):
                part = (
                    slice(None),
                    slice(top, top + window_size),
                    slice(left, left + window_size),
                )
                tokens = x[part]
                alone = layer(tokens.flatten(1, 2), tuple(tokens.shape[1:3]))
                torch.testing.assert_close(y[part].flatten(1, 2), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('rel_pos', [False, True])
def test_a_window_as_large_as_the_map_is_global_attention(rel_pos):
    local = attention(7, rel_pos=rel_pos)
    everywhere = attention(grid=(7, 7), rel_pos=rel_pos)
    everywhere.load_state_dict(local.state_dict())
    x = torch.randn(2, 49, 16)
    torch.testing.assert_close(local(x, (7, 7)), everywhere(x, (7, 7)))
    if not rel_pos:
        torch.testing.assert_close(local(x[:, :20], (4, 5)), everywhere(x[:, :20], (4, 5)))


def test_relative_positions_start_without_effect_and_learn():
    with_positions = SoftmaxAttention(16, 2, (3, 3), 3, rel_pos=True)
    without = SoftmaxAttention(16, 2, (3, 3), 3)
    without.load_state_dict(with_positions.state_dict(), strict=False)
    x = torch.randn(1, 30, 16)
    y = with_positions(x, (5, 6))
    torch.testing.assert_close(y, without(x, (5, 6)))
    y.square().sum().backward()
    assert with_positions.rel_pos_h.grad.abs().min() > 0
    assert with_positions.rel_pos_w.grad.abs().min() > 0


def test_a_window_larger_than_its_relative_positions_is_an_error():
    layer = SoftmaxAttention(16, 2, (2, 2), 4, rel_pos=True)
    with pytest.raises(ValueError, match='3 distances cannot serve a window of size 4'):
        layer(torch.randn(1, 16, 16), (4, 4))


@pytest.mark.parametrize(('dims', 'heads'), [(192, 3), (384, 6)])
def test_mimetic_products_look_like_those_of_trained_models(dims, heads):
    torch.manual_seed(0)
    layer = SoftmaxAttention(dims, heads, (4, 4))
    w_q, w_k, w_v = (w.T for w in layer.qkv.weight.detach().view(3, dims, dims))
    head_dims = dims // heads

    def diagonal_and_rest(product):
        diagonal = product.diagonal()
        return diagonal, (product - torch.diag(diagonal))

    for head in range(heads):
        part = slice(head * head_dims, (head + 1) * head_dims)
        diagonal, rest = diagonal_and_rest(w_q[:, part] @ w_k[:, part].T)
        # The identity's best approximation of a third or a sixth of its rank.
        assert diagonal.mean() > 0.9 * 0.7 * head_dims / dims
        assert diagonal.mean() > 5 * rest.std()
        assert abs(rest.mean()) < 0.1 * rest.std()
        assert diagonal.min() > 0

    diagonal, rest = diagonal_and_rest(w_v @ layer.proj.weight.detach().T)
    assert diagonal.mean() == pytest.approx(-0.4, abs=0.02)
    assert rest.std() == pytest.approx(0.4 / dims**0.5, rel=0.05)
    assert diagonal.max() < 0
    assert not layer.qkv.bias.any()
    assert not layer.proj.bias.any()


def test_mimetic_query_key_product_is_the_best_low_rank_approximation():
    torch.manual_seed(0)
    layer = SoftmaxAttention(48, 3, (4, 4))
    torch.manual_seed(0)
    layer.reset_parameters()
    torch.manual_seed(0)
    wanted = 0.7 / 48**0.5 * torch.randn(48, 48) + 0.7 * torch.eye(48)
    u, s, vh = torch.linalg.svd(wanted)
    best = (u[:, :16] * s[:16]) @ vh[:16]
    w_q, w_k = layer.qkv.weight.detach()[:16], layer.qkv.weight.detach()[48:64]
    torch.testing.assert_close(w_q.T @ w_k, best, rtol=1e-4, atol=1e-5)
    # Both sides carry the same share of the singular values.
    torch.testing.assert_close(w_q.square().sum(), w_k.square().sum(), rtol=1e-4, atol=0)


def test_without_mimetic_weights_are_those_of_a_vit():
    torch.manual_seed(0)
    layer = SoftmaxAttention(192, 3, (4, 4), mimetic=False)
    assert layer.qkv.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert layer.proj.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_heads_must_divide_channels():
    with pytest.raises(ValueError, match='num_heads=3 does not divide embed_dims=16'):
        SoftmaxAttention(16, 3, (4, 4))
