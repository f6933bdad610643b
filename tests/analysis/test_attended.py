"""What attentions of a network take, and the rows of their matrices as maps."""

import pytest
import torch

from kat_mm.analysis.capture import attended
from kat_mm.attention.projections import split_heads
from kat_mm.models import KAT

ARCH = {'embed_dims': 16, 'num_layers': 4, 'num_heads': 2}


def network(arch=ARCH, **attention):
    torch.manual_seed(0)
    model = KAT(arch, 80, attention=attention).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tokens_of_blocks(model, images):
    """The normed tokens of each block, by running the blocks without windows' order."""
    x, grid = model.embed(images)
    result = []
    for block in model.blocks:
        result.append(block.norm1(x))
        x = block(x, grid)
    return result, grid


@pytest.mark.parametrize('size', [(80, 80), (64, 112)])
@pytest.mark.parametrize('rel_pos', [False, True])
def test_blocks_with_and_without_windows(size, rel_pos):
    model = network(type='softmax', window_size=2, global_blocks=(1,), rel_pos=rel_pos)
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    seen = attended(model, lambda: model(images))
    assert [s.name for s in seen] == [f'blocks.{i}.attn' for i in range(4)]
    assert [s.windows is None for s in seen] == [False, True, False, False]
    with torch.no_grad():
        inputs, (h, w) = tokens_of_blocks(model, images)
        for one, x in zip(seen, inputs, strict=True):
            y, x_of = h - 1, w - 2
            row = one.rows([(y, x_of)], image=1)[0]
            assert row.shape == (2, h, w)
            # By hand: the tokens of the window, row by row.
            if one.windows is None:
                inside = [(i, j) for i in range(h) for j in range(w)]
            else:
                top, left = y // 2 * 2, x_of // 2 * 2
                inside = [
                    (i, j) for i in range(top, min(top + 2, h)) for j in range(left, left + 2)
                ]
                inside = [(i, j) for i, j in inside if j < w]
            index = [i * w + j for i, j in inside]
            size_of = (inside[-1][0] - inside[0][0] + 1, inside[-1][1] - inside[0][1] + 1)
            qkv = one.attention.qkv(x[1:2])[:, index]
            weights = one.attention.matrices(qkv, size_of).weights[0]
            wanted = torch.full((2, h, w), torch.nan, dtype=torch.float64)
            for place, (i, j) in enumerate(inside):
                wanted[:, i, j] = weights[:, inside.index((y, x_of)), place]
            torch.testing.assert_close(row, wanted, equal_nan=True)
            if not rel_pos:
                q, k, _ = split_heads(qkv, 2)
                scores = q[0, :, inside.index((y, x_of))] @ k[0].mT / 8**0.5
                own = torch.diagonal_scatter  # noqa: F841
                for head in range(2):
                    plain = scores[head, head] if scores.dim() == 3 else scores[head]
                    torch.testing.assert_close(
                        row[head][~row[head].isnan()], plain.softmax(-1), atol=1e-12, rtol=1e-9
                    )


def test_parts_cover_each_token_once():
    model = network(type='KArAt', window_size=3, global_blocks=())
    seen = attended(model, lambda: model(torch.randn(2, 3, 80, 112, dtype=torch.float64)))
    for one in seen:
        covered = torch.zeros(one.grid)
        for part in one.parts():
            h, w = part.size
            assert part.matrices.weights.shape == (2 * len(part.corners), 2, h * w, h * w)
            for top, left in part.corners:
                covered[top : top + h, left : left + w] += 1
        assert (covered == 1).all()


def test_prefix_tokens_are_left_out_of_maps():
    model = network({**ARCH, 'reg_tokens': 2}, type='KArAt')
    seen = attended(model, lambda: model(torch.randn(1, 3, 48, 48, dtype=torch.float64)))
    assert seen[0].prefix == 3
    with torch.no_grad():
        x = seen[0].attention.project(seen[0].tokens)
        weights = seen[0].attention.matrices(x, (3, 3)).weights
    torch.testing.assert_close(
        seen[0].rows([(1, 2)])[0], weights[0, :, 3 + 5, 3:].unflatten(-1, (3, 3))
    )


def test_a_shared_attention_is_seen_in_each_block():
    model = network(type='KArAt', shared=True)
    seen = attended(model, lambda: model(torch.randn(1, 3, 80, 80, dtype=torch.float64)))
    assert len(seen) == 4
    assert len({s.attention for s in seen}) == 1
    assert not torch.equal(seen[0].tokens, seen[1].tokens)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_labels():
    labels = []
    for options in ('softmax', 'KArAt', dict(type='KArAt', base='softmax')):
        model = KAT({**ARCH, 'num_layers': 1}, 64, attention=options).eval()
        [seen] = attended(model, lambda model=model: model(torch.randn(1, 3, 64, 64)))
        labels.append(seen.label)
    assert labels == ['softmax', 'KArAt', 'softmax + gated KArAt']
