"""Operations and parameters by part, against arithmetic by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from kat_mm.attention.bases.fourier import Fourier
from kat_mm.attention.operator_attention import operator_attention
from kat_mm.attention.projections import split_heads
from kat_mm.benchmarking.operations import Part, count_parts
from kat_mm.models import KAT
from kat_mm.openmmlab.dry_run import meta_parameters
from kat_mm.rational import GroupRational

D, FFN, LAYERS, HEADS = 48, 64, 3, 3
WINDOWS = dict(type='softmax', window_size=3, global_blocks=(1,))
ARCH = dict(embed_dims=D, num_layers=LAYERS, num_heads=HEADS, feedforward_channels=FFN)


class Model(nn.Module):
    """Puts a backbone where it is in a whole model."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images):
        return self.backbone(images)


def count_kat(size, **kwargs):
    model = Model(KAT(ARCH, **kwargs))
    parts = count_parts(model, torch.zeros(1, 3, *size))
    assert sum(p.parameters for p in parts.values()) == sum(p.numel() for p in model.parameters())
    assert {component for component, _ in parts} == {'backbone'}
    return {name: part for (_, name), part in parts.items()}


@pytest.mark.parametrize('form', ['w_phi', 'phi_phi'])
def test_kolmogorov_arnold_attention(form):
    h, w, rank, grid_size = 3, 5, 7, 2
    n, functions = h * w + 1, HEADS * rank * 2 * grid_size
    config = dict(type='KArAt', rank=rank, form=form, basis=dict(grid_size=grid_size))
    parts = count_kat((16 * h, 16 * w), img_size=(16 * h, 16 * w), attention=config)
    if form == 'w_phi':  # scores, Phi of them, W^T V and Phi times that; Phi is linear in its r N
        products = n * n * (D + functions) + 2 * n * rank * D
        parameters = n * (functions + HEADS * rank)
    else:  # scores, both layers of functions, times V
        products = n * n * (2 * D + 2 * functions)
        parameters = 2 * n * functions
    assert parts['attention, products'] == Part(0, LAYERS * products)
    assert parts['attention, functions'] == Part(LAYERS * parameters, 0)
    assert parts['attention, linear layers'].parameters == LAYERS * 4 * D * (D + 1)


def test_the_op_counts_the_same():
    """As on a GPU, where scores are not stored."""
    basis, scales, n = Fourier(2), (1.0, 1.0, 1.0), 11
    tensors = [torch.randn(2, n, 3 * HEADS * 8), torch.randn(HEADS, 7, n, 4)]
    tensors = [x.requires_grad_() for x in (*tensors, torch.randn(HEADS, n, 7))]

    def plain(qkv, c, w, *_):
        q, k, v = split_heads(qkv, HEADS)
        return basis.sums(q @ k.mT, c) @ (w.mT @ v)

    counts = []
    for attention in (operator_attention, plain):
        with FlopCounterMode(display=False) as counter:
            y = attention(*tensors, scales, basis)
            forward = counter.get_total_flops()
            torch.autograd.grad(y.sum(), tensors)
        counts.append((forward, counter.get_total_flops() - forward))
    (op, op_backward), (other, other_backward) = counts
    assert op == other == 2 * 2 * HEADS * n * (n * (8 + 7 * 4) + 2 * 7 * 8)
    assert op_backward == other_backward + 2 * 2 * HEADS * n * n * 8  # scores are computed again


def linear(inputs, outputs):
    return inputs * outputs + outputs


def test_a_vision_transformer():
    h, w = 3, 5
    n = h * w + 1
    assert count_kat((16 * h, 16 * w), img_size=(16 * h, 16 * w)) == {
        'embeddings': Part(linear(3 * 16 * 16, D) + n * D + D, h * w * 3 * 16 * 16 * D),
        'attention, linear layers': Part(
            LAYERS * (linear(D, 3 * D) + linear(D, D)), LAYERS * n * 4 * D * D
        ),
        'attention, products': Part(0, LAYERS * 2 * n * n * D),
        'MLP, linear layers': Part(
            LAYERS * (linear(D, FFN) + linear(FFN, D)), LAYERS * n * 2 * D * FFN
        ),
        # P(x) / Q(x): five and four multiplications and additions, |x|, and the rest of 2m + 2n + 3
        'rational activations': Part(LAYERS * 2 * (6 + 8 * 4), LAYERS * n * (D + FFN) * 21),
        'norms': Part((2 * LAYERS + 1) * 2 * D, (2 * LAYERS + 1) * n * D * 5),
    }


def test_attention_in_windows():
    """A map of 5 x 7 in windows of 3: sides 3 and 2 by 3, 3 and 1."""
    parts = count_kat((80, 112), img_size=(80, 112), attention=WINDOWS)
    squares = sum((a * b) ** 2 for a in (3, 2) for b in (3, 3, 1))
    products = 2 * squares * 2 * D + 35**2 * 2 * D
    assert parts['attention, products'].operations == products

    parts = count_kat((80, 112), img_size=(80, 112), attention={**WINDOWS, 'rel_pos': True})
    # Each query meets a vector for each row and each column of its window.
    biases = 2 * sum(a * b * (a + b) for a in (3, 2) for b in (3, 3, 1)) * D + 35 * 12 * D
    assert parts['attention, products'].operations == products + biases


def test_a_pyramid_and_resized_position_embeddings():
    parts = count_kat((64, 64), img_size=32, pyramid=(8, 8, 8, 8), out_indices=(2, 3))
    assert parts['pyramid'].operations == sum(n * (D * 8 + 9 * 8 * 8) for n in (16, 4))
    assert parts['other products'].operations == 2 * 2 * 4 * D + 2 * 4 * 4 * D


class Mixed(nn.Module):
    """Convolutions, norms, a module that another one runs, and one weight in two places."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1, groups=2), nn.BatchNorm2d(8))
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.head = nn.ModuleDict({'layer': nn.Linear(6, 5), 'norm': nn.GroupNorm(2, 6)})
        self.decoder = Runs()
        self.decoder.twin = nn.Linear(6, 5)
        self.decoder.twin.weight = self.head['layer'].weight

    def forward(self, x):
        y = self.head['norm'](self.up(self.stem(x)))
        return self.decoder(y, self.head['layer'])


class Runs(nn.Module):
    def forward(self, x, layer):
        return layer(x.mean((2, 3)))


def test_other_layers_belong_to_the_module_that_computes_them():
    parts = count_parts(Mixed().eval(), torch.zeros(2, 4, 8, 8))
    assert parts == {
        ('stem', ''): Part(2 * 9 * 8 + 8, 2 * 16 * 8 * 2 * 9),
        ('stem', 'norms'): Part(16, 2 * 16 * 8 * 2),
        ('up', ''): Part(8 * 6 * 4 + 6, 2 * 16 * 8 * 6 * 4),
        ('head', ''): Part(6 * 5 + 5, 2 * 6 * 5),
        ('head', 'norms'): Part(12, 2 * 64 * 6 * 5),
        ('decoder', ''): Part(5, 0),
    }


def test_a_frozen_layer_of_a_transposed_batch_is_no_product_of_activations():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 4).requires_grad_(False)

        def forward(self, x):
            return self.layer(x.transpose(1, 2))

    parts = count_parts(Head(), torch.zeros(2, 8, 5))
    assert parts == {('layer', ''): Part(36, 2 * 5 * 8 * 4)}


@settings(max_examples=20, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    order=st.tuples(st.integers(1, 8), st.integers(1, 8)),
)
def test_operations_of_the_rational_function(shape, order):
    """Torch's own counter has the formula too."""
    x = torch.zeros(*shape, 4)
    act = GroupRational(2, init=((0.0, 1.0), (0.0,)), order=order, channel_dim=-1)
    with FlopCounterMode(display=False) as counter:
        act(x)
    assert counter.get_total_flops() == x.numel() * (2 * sum(order) + 3)


@pytest.mark.parametrize('masked', [False, True])
def test_fused_attention(masked):
    class Attention(nn.Module):
        def forward(self, q, mask):
            return F.scaled_dot_product_attention(q, q, q, attn_mask=mask)

    for device in ('cpu', 'meta'):
        q = torch.zeros(2, 3, 5, 4, device=device)
        mask = torch.zeros(5, 5, device=device) if masked else None
        parts = count_parts(Attention(), q, mask)
        assert parts == {('', 'other products'): Part(0, 2 * 2 * 3 * 5 * 5 * 4)}


def test_parameters_on_the_meta_device_and_nothing_else():
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.depths = [x.item() for x in torch.linspace(0, 1, 3)]
            self.register_buffer('mean', torch.ones(3))
            self.register_parameter('none', None)
            self.layer = nn.Linear(3, 3)
            self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
            self.twin = nn.Linear(3, 3)
            self.twin.weight = self.layer.weight

    register = nn.Module.register_parameter
    with meta_parameters():
        module = Module()
    with pytest.raises(TypeError), meta_parameters():
        nn.Linear('wide', 3)
    assert nn.Module.register_parameter is register
    assert module.depths == [0, 0.5, 1]
    assert module.mean.tolist() == [1, 1, 1]
    assert module.none is None
    assert all(p.is_meta and isinstance(p, nn.Parameter) for p in module.parameters())
    assert module.layer.weight.requires_grad
    assert not module.frozen.requires_grad
    assert module.twin.weight is module.layer.weight
