"""What only a GPU shows: exact sums over many elements, the same bits always, CUDA graphs."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kat_mm.models.ffn.gr_kan import GRKAN
from kat_mm.rational import rational_reference
from kat_mm.rational.op import compiled_devices

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device'),
]
BACKWARD = torch.ops.kat_mm.rational_backward.default


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape, device='cuda').to(dtype)


def test_cuda_kernel_is_compiled():
    assert 'cuda' in compiled_devices(), 'the compiled CUDA kernel is missing: build it first'


@pytest.mark.slow
def test_coefficient_gradients_of_100_million_elements():
    """Their relative error against fp64 is at most 1e-5."""
    shape = (128, 256, 3072)
    x, grad, a, b = draw(*shape), draw(*shape), draw(1, 6), draw(8, 4)
    _, *got = BACKWARD(grad, x, a, b)
    exact = [torch.zeros_like(t, dtype=torch.float64) for t in (a, b)]
    for i in range(0, 128, 8):  # in fp64 the reference takes many copies
        part = [t[i : i + 8].double() for t in (grad, x)]
        _, *sums = torch.ops.kat_mm.rational_backward(*part, a.double(), b.double())
        exact = [total + s for total, s in zip(exact, sums, strict=True)]
    for ours, fp64 in zip(got, exact, strict=True):
        assert (ours - fp64).norm() <= 1e-5 * fp64.norm()


@pytest.mark.parametrize('shape', [(8, 197, 768), (3, 5, 24)])
def test_gradients_have_the_same_bits_in_100_runs(shape):
    x, grad, a, b = draw(*shape), draw(*shape), draw(1, 6), draw(8, 4)
    first = BACKWARD(grad, x, a, b)
    for _ in range(100):
        again = BACKWARD(grad, x, a, b)
        assert all(torch.equal(p, q) for p, q in zip(first, again, strict=True))


@pytest.mark.parametrize(
    ('shape', 'channel_dim'), [((64, 197, 768), -1), ((2, 64, 100, 128), 1), ((3, 40), -1)]
)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32])
def test_every_element_is_written(shape, channel_dim, dtype):
    """Sizes of one block, and of many steps of each; the memory was poisoned before."""
    x, a, b = draw(*shape, dtype=dtype), draw(1, 6), draw(8, 4)
    grad = torch.randn_like(x)
    for _ in range(2):
        poison = [torch.full_like(x, torch.nan) for _ in range(4)]
        del poison  # goes back to the allocator, which hands it out again
        y = torch.ops.kat_mm.rational(x, a, b, channel_dim)
        dx, *_ = BACKWARD(grad, x, a, b, channel_dim)
        args = (a.double(), b.double(), channel_dim)
        exact = rational_reference(x.double(), *args)
        exact_dx, *_ = BACKWARD(grad.double(), x.double(), *args)
        for ours, fp64 in ((y, exact), (dx, exact_dx)):
            assert (ours - fp64).norm() <= torch.finfo(dtype).eps * 10 * fp64.norm()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(64)
        self.ffn = GRKAN(64)

    def forward(self, x):
        return self.ffn(x, norm=self.norm)


def steps(model, forward, count=8):
    """Trains with autocast; returns the losses."""
    x = torch.linspace(-2, 2, 4 * 5 * 64, device='cuda').view(4, 5, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(count):
        torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast('cuda', torch.bfloat16):
            loss = F.mse_loss(forward(x).float(), x.sin())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach().clone())
    return torch.stack(losses)


@pytest.mark.slow
def test_compiled_cuda_graphs_train_and_infer():
    torch.manual_seed(0)
    eager = Model().cuda()
    graphed = Model().cuda()
    graphed.load_state_dict(eager.state_dict())
    compiled = torch.compile(graphed, mode='reduce-overhead', fullgraph=True)
    expected = steps(eager, eager)
    assert expected[-1] < expected[0]
    torch.testing.assert_close(steps(graphed, compiled), expected, rtol=0.02, atol=1e-3)
    with torch.no_grad():
        x = draw(4, 5, 64)
        for _ in range(4):
            torch.compiler.cudagraph_mark_step_begin()
            torch.testing.assert_close(compiled(x), graphed(x), rtol=1e-3, atol=1e-3)


def test_captured_graph_replays_forward_and_backward():
    x, a, b = draw(4, 5, 64), draw(1, 6), draw(8, 4)
    grad = torch.randn_like(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        BACKWARD(grad, x, a, b)  # the first call sets up what must not be set up in a capture
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        y = torch.ops.kat_mm.rational(x, a, b)
        results = BACKWARD(grad, x, a, b)
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert torch.equal(y, torch.ops.kat_mm.rational(x, a, b))
        assert all(torch.equal(p, q) for p, q in zip(results, BACKWARD(grad, x, a, b), strict=True))
