"""Learnable attention in models, fitted to the softmax attention of others."""

import pytest
import torch

from kat_mm.attention.karat import KArAt
from kat_mm.attention.projections import split_heads
from kat_mm.errors import ConfigError, DataError
from kat_mm.fitting import attention
from kat_mm.fitting.attention import fit_attention, softmax_twin
from kat_mm.models import KAT

ARCH = {'embed_dims': 16, 'num_layers': 2, 'num_heads': 2}


def model(size=32, arch=ARCH, **options):
    torch.manual_seed(0)
    return KAT(arch, size, patch=8, attention={'type': 'KArAt', 'mimetic': False, **options}).eval()


def images(count, size=32, seed=0, batches=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 3, *_pair(size), generator=generator) for _ in range(batches)]


def _pair(size):
    return size if isinstance(size, tuple) else (size, size)


def test_the_twin_has_the_weights_and_softmax():
    student = model()
    twin = softmax_twin(student)
    assert not any(isinstance(module, KArAt) for module in twin.modules())
    assert {key for key in student.state_dict() if '.operator.' not in key} == {*twin.state_dict()}
    plain = KAT(ARCH, 32, patch=8).eval()
    plain.load_state_dict(twin.state_dict())
    [x] = images(2)
    assert torch.equal(plain(x)[0], twin(x)[0])


@pytest.mark.parametrize(
    'options',
    [{}, {'form': 'phi'}, {'window_size': 2, 'global_blocks': ()}, {'shared': 'operator'}],
    ids=str,
)
def test_fits_each_block_in_place(options):
    student = model(**options, basis='b_spline')
    rest = {k: v.clone() for k, v in student.state_dict().items() if '.operator.' not in k}
    twin = softmax_twin(student)
    batches = images(32, batches=6)
    # Windows at the edges of a map of 5 x 4 tokens are left out.
    batches = batches if not student.window_size else [*batches, *images(2, (40, 32))]
    before = attention.measure(attention.check_models(student, twin), twin, images(8, seed=2))
    fits = fit_attention(student, twin, batches, images(32, seed=1), images(8, seed=2))
    assert [fit.name for fit in fits] == ['blocks.0.attn', 'blocks.1.attn']
    for fit in fits:
        # Scores of weights as drawn are close to zero, and attention to uniform.
        assert max(fit.errors) < 0.1 < min(before[fit.name][0])
        assert len(fit.errors) == len(fit.uniform) == len(fit.solution.ridges) == 2
    for key, value in rest.items():
        if '.qkv.' in key:
            continue
        assert torch.equal(student.state_dict()[key], value)
    [x] = images(4, seed=3)
    with torch.no_grad():
        wanted, found, new = (m(x)[0] for m in (twin, student, model(**options)))
    assert (found - wanted).norm() < 0.2 * (new - wanted).norm()
    rows = 32 * 6 * 17 if not student.window_size else 32 * 6 * 16 + 2 * 16
    assert fits[0].rows == rows * (2 if options.get('shared') else 1)


def test_one_attention_in_all_blocks():
    student = model(shared=True, basis='b_spline')
    twin = softmax_twin(student)
    assert twin.blocks[0].attn is twin.blocks[1].attn
    [fit] = fit_attention(student, twin, *(images(16, seed=s, batches=2) for s in range(3)))
    assert fit.name == 'blocks.0.attn'
    assert fit.rows == 16 * 2 * 17 * 2
    assert max(fit.errors) < 0.1


def test_queries_are_scaled_and_nothing_else_of_the_projection():
    student = model(basis={'grid_size': 1})
    with torch.no_grad():
        for block in student.blocks:
            block.attn.qkv.weight[:16] *= 30.0
            block.attn.qkv.bias.normal_()
    twin = softmax_twin(student)
    old = {k: v.clone() for k, v in student.state_dict().items()}
    fits = fit_attention(student, twin, *(images(16, seed=s, batches=4) for s in range(3)))
    for i, fit in enumerate(fits):
        new = student.blocks[i].attn.qkv
        scales = torch.tensor(fit.scales)
        assert not torch.equal(scales, torch.ones(2))
        for name in ('weight', 'bias'):
            before = old[f'blocks.{i}.attn.qkv.{name}']
            after = getattr(new, name)
            each = scales.repeat_interleave(8).view(-1, *[1] * (before.dim() - 1))
            torch.testing.assert_close(after[:16], before[:16] * each)
            assert torch.equal(after[16:], before[16:])
        # What was measured is what the block computes.
        x = torch.randn(2, 17, 16)
        q, _, _ = split_heads(new(x), 2)
        teacher_q = split_heads(twin.blocks[i].attn.qkv(x), 2)[0]
        torch.testing.assert_close(q, teacher_q * scales[:, None, None])


def test_few_moments_at_a_time_change_nothing(monkeypatch):
    def run():
        student = model()
        fit_attention(student, softmax_twin(student), *(images(8, seed=s) for s in range(3)))
        return student.state_dict()

    whole = run()
    monkeypatch.setattr(attention, 'BUDGET', 1)
    for key, value in run().items():
        assert torch.equal(whole[key], value)


def test_global_blocks_take_tokens_row_by_row():
    """Between windowed blocks their tokens come in the order of the windows."""
    student = model(window_size=2, global_blocks=(1,))
    teacher = softmax_twin(student)
    seen = {}

    def keep(name, q, k, v):
        seen[name] = v

    pairs = attention.check_models(student, teacher)
    [x] = images(2)
    attention.visit(pairs, teacher, [x], list(pairs), keep)
    tokens, grid = teacher.embed(x)
    tokens = teacher.blocks[0](tokens, grid)
    block = teacher.blocks[1].attn
    v = block.project(teacher.blocks[1].norm1(tokens))[..., 32:].unflatten(2, (2, 8))
    torch.testing.assert_close(seen['blocks.1.attn'], v.transpose(1, 2).double())


def test_errors():
    def fit(student, teacher=None, size=32):
        teacher = teacher or softmax_twin(student)
        fit_attention(student, teacher, *(images(2, size, seed=s) for s in range(3)))

    with pytest.raises(ConfigError, match=r"blocks.0.attn: base='softmax' starts as the softmax"):
        fit(model(base='softmax'))
    with pytest.raises(ConfigError, match=r'blocks.0.attn cannot be fitted by least squares: DOG'):
        fit(model(basis='dog'))
    with pytest.raises(ConfigError, match="no attention of type 'KArAt': nothing to fit"):
        fit(KAT(ARCH, 32, patch=8), KAT(ARCH, 32, patch=8))
    with pytest.raises(ConfigError, match='has no softmax attention of 2 heads, window_size=0'):
        fit(model(), KAT({**ARCH, 'num_heads': 4}, 32, patch=8))
    rel_pos = KAT(ARCH, 32, patch=8, attention={'rel_pos': True})
    with pytest.raises(ConfigError, match='adds relative positions to its scores'):
        fit(model(), rel_pos)
    shared = KAT(ARCH, 32, patch=8, attention={'shared': True})
    with pytest.raises(ConfigError, match=r'blocks.1.attn: the softmax model has one attention'):
        fit(model(), shared)
    with pytest.raises(DataError, match=r'made for 4 x 4 tokens, .* \(the last map: \(5, 4\)\)'):
        fit(model(), size=(40, 32))
