"""Windows: the order of their tokens, attention in that order, all windows by one kernel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kat_mm.attention.flash import flash_attention
from kat_mm.attention.softmax import SoftmaxAttention
from kat_mm.attention.windows import Windows, windows_of
from kat_mm.models import KAT

SIZES = dict(height=st.integers(1, 11), width=st.integers(1, 11), size=st.integers(1, 6))


def brute_force_order(height, width, size):
    """The positions of tokens in the order of the windows, by sorting them."""

    def place(position):
        y, x = divmod(position, width)
        bottom, right = y >= height // size * size, x >= width // size * size
        return bottom, right, y // size, x // size, y, x

    return sorted(range(height * width), key=place)


@settings(max_examples=60, deadline=None)
@given(**SIZES)
def test_order_keeps_the_tokens_of_a_window_together(height, width, size):
    windows = Windows((height, width), size)
    positions = torch.arange(height * width).view(1, -1, 1).repeat(2, 1, 3)
    ordered = windows.order(positions)
    expected = brute_force_order(height, width, size)
    assert all(ordered[b, :, c].tolist() == expected for b in range(2) for c in range(3))
    assert torch.equal(windows.restore(ordered), positions)
    # Each window is all of the tokens of one window of the map.
    seen = set()
    for window in torch.tensor(expected).split(windows.lengths):
        [place] = {(p // width // size, p % width // size) for p in window.tolist()}
        seen.add(place)
    assert len(seen) == len(windows.lengths) == -(-height // size) * -(-width // size)
    assert sum(windows.tokens) == height * width


def test_gradients_of_the_order():
    windows = Windows((5, 7), 3)
    x = torch.randn(2, 35, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 35, 2, dtype=torch.float64)
    (windows.order(x) * weight).sum().backward()
    assert torch.equal(x.grad, windows.restore(weight))
    x.grad = None
    (windows.restore(x) * weight).sum().backward()
    assert torch.equal(x.grad, windows.order(weight))


def attention(grid, window_size=0, rel_pos=False):
    layer = SoftmaxAttention(16, 2, grid, window_size, rel_pos=rel_pos)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.2)
    return layer


@settings(max_examples=40, deadline=None)
@given(rel_pos=st.booleans(), is_global=st.booleans(), **SIZES)
def test_attention_of_sorted_tokens(height, width, size, rel_pos, is_global):
    """Of windows and of all of the map, which in a network with windows is sorted too."""
    grid = height, width
    layer = attention(grid, rel_pos=rel_pos) if is_global else attention((size,) * 2, size, rel_pos)
    windows = Windows(grid, size)
    x = torch.randn(2, height * width, 16)
    with torch.no_grad():
        got = windows.restore(layer(windows.order(x), grid, windows))
        torch.testing.assert_close(got, layer(x, grid), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('rel_pos', [False, True])
@pytest.mark.parametrize('image', [(48, 80), (80, 72)])
def test_networks_compute_what_their_blocks_do_row_by_row(image, rel_pos):
    torch.manual_seed(0)
    arch = dict(embed_dims=16, num_heads=2, num_layers=4, feedforward_channels=32)
    options = dict(window_size=3, global_blocks=(1, 3), rel_pos=rel_pos)
    model = KAT(arch, image, patch=8, attention=options, out_indices=(0, 1, 3)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    images = torch.randn(2, 3, *image, dtype=torch.float64, requires_grad=True)

    def row_by_row(images):
        x, grid = model.embed(images)
        maps = []
        for block in model.blocks:
            x = block(x, grid)
            maps.append(x)
        maps[3] = model.norm(maps[3])
        return [maps[i].transpose(1, 2).unflatten(2, grid) for i in (0, 1, 3)]

    results = []
    for function in (model, row_by_row):
        maps = function(images)
        wanted = [images, *model.parameters()]
        grads = torch.autograd.grad(sum(m.square().sum() for m in maps), wanted)
        results.append([*maps, *grads])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_there_are_no_windows_without_a_size():
    assert windows_of((4, 6), 0) is None
    assert windows_of((4, 6), 3).lengths == [9, 9, 3, 3]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_cpu_takes_the_windows_tile_by_tile(dtype):
    qkv = torch.randn(2, 24, 48, dtype=dtype)
    assert flash_attention(qkv, 2, Windows((4, 6), 3)) is None


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip('needs a GPU of compute capability 8.0')


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(('grid', 'size'), [((9, 13), 4), ((8, 8), 4), ((3, 5), 7), ((50, 84), 14)])
@pytest.mark.parametrize('head_dims', [8, 64])
def test_windows_at_once(gpu, dtype, grid, size, head_dims):
    """And all tokens: values and gradients err as little as those of the formula."""
    heads = 2
    windows = Windows(grid, size)

    def naive(x):
        q, k, v = x.unflatten(2, (3, heads, head_dims)).permute(2, 0, 3, 1, 4)
        y = (q @ k.mT / head_dims**0.5).softmax(-1) @ v
        return y.transpose(1, 2).flatten(2)

    def tile_by_tile(x):
        return windows.attend(lambda x, grid: naive(x), x)

    qkv = torch.randn(2, grid[0] * grid[1], 3 * heads * head_dims, device='cuda').to(dtype)
    grad = torch.randn(2, grid[0] * grid[1], heads * head_dims, device='cuda').to(dtype)

    def results(function, qkv, grad):
        qkv = qkv.clone().requires_grad_()
        y = function(qkv)
        y.backward(grad)
        return y.detach().double(), qkv.grad.double()

    for here in (windows, None):
        got = results(lambda x, here=here: flash_attention(x, heads, here), qkv, grad)

        def apart(x, here=here):
            return tile_by_tile(x) if here else naive(x)

        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            assert flash_attention(qkv, heads, here) is None
            plain = results(apart, qkv, grad)
            exact = results(apart, qkv.double(), grad.double())
        for ours, theirs, fp64 in zip(got, plain, exact, strict=True):
            rounding = 2 * torch.finfo(dtype).eps * fp64.abs().max()
            assert (ours - fp64).abs().max() <= 2 * (theirs - fp64).abs().max() + rounding


@pytest.mark.gpu
def test_deterministic_algorithms_give_the_same_bits_in_each_run(gpu):
    windows = Windows((50, 84), 14)
    qkv = torch.randn(2, 50 * 84, 3 * 128, device='cuda', dtype=torch.bfloat16, requires_grad=True)

    def step():
        y = flash_attention(qkv, 2, windows)
        return [y, *torch.autograd.grad(y.float().square().sum(), qkv)]

    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        first = step()
        for _ in range(20):
            assert all(torch.equal(p, q) for p, q in zip(step(), first, strict=True))
    finally:
        torch.use_deterministic_algorithms(was)


@pytest.mark.gpu
def test_windows_that_the_kernel_does_not_take(gpu):
    windows = Windows((9, 13), 4)
    qkv = torch.randn(2, 9 * 13, 48, device='cuda')
    assert flash_attention(qkv, 2, windows) is None  # of fp32
    assert flash_attention(qkv.bfloat16(), 4, windows) is None  # of heads of 4 channels
    layer = attention((4, 4), 4).cuda()
    qkv = qkv.bfloat16()
    y = torch.vmap(lambda x: layer.attend_windows(x, windows))(qkv[:, None])[:, 0]
    torch.testing.assert_close(y, layer.attend_windows(qkv, windows), rtol=0.02, atol=0.02)
