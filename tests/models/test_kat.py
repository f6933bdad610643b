"""The KAT backbone: shapes, sizes, indices, freezing, loading and errors."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kats import randomise

from kat_mm.errors import ConfigError
from kat_mm.models import ARCHS, KAT
from kat_mm.rational import published_state_dict

SMALL = {'embed_dims': 48, 'num_layers': 4, 'num_heads': 3, 'feedforward_channels': 64}
WINDOWS = {'window_size': 2, 'global_blocks': (3,)}
DROPOUT = {'patch': {'drop': 0.1}, 'attention': {'drop': 0.1}, 'ffn': {'drop': 0.1}}
PUBLISHED_PARAMETERS = {'tiny': 5_718_328, 'small': 22_051_576, 'base': 86_568_568}


def small(**kwargs):
    torch.manual_seed(0)
    return KAT(**{'arch': SMALL, 'img_size': 64, **kwargs})


@pytest.mark.parametrize('arch', [*list(ARCHS)[:-1], pytest.param('base', marks=pytest.mark.slow)])
def test_every_arch_runs_and_has_the_published_number_of_parameters(arch):
    model = KAT(arch, img_size=64, attention={'mimetic': arch == 'tiny'})
    (y,) = model(torch.randn(2, 3, 64, 64))
    assert y.shape == (2, model.embed_dims, 4, 4)
    (y * torch.randn_like(y)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    positions = (196 - 16) * model.embed_dims  # the published models are made for 224 pixels
    head = 1000 * model.embed_dims + 1000
    count = sum(p.numel() for p in model.parameters()) + positions + head
    assert count == PUBLISHED_PARAMETERS[arch]


def test_keys_and_shapes_are_the_published_ones():
    published = published_state_dict(KAT('tiny'))
    state = {key: tuple(value.shape) for key, value in published.items()}
    expected = {
        'cls_token': (1, 1, 192),
        'pos_embed': (1, 197, 192),
        'patch_embed.proj.weight': (192, 3, 16, 16),
        'patch_embed.proj.bias': (192,),
        'norm.weight': (192,),
        'norm.bias': (192,),
    }
    for i in range(12):
        for name, shape in {
            'norm1.weight': (192,),
            'norm1.bias': (192,),
            'attn.qkv.weight': (576, 192),
            'attn.qkv.bias': (576,),
            'attn.proj.weight': (192, 192),
            'attn.proj.bias': (192,),
            'norm2.weight': (192,),
            'norm2.bias': (192,),
            'mlp.act1.weight_numerator': (1, 6),
            'mlp.act1.weight_denominator': (8, 4),
            'mlp.fc1.weight': (768, 192),
            'mlp.fc1.bias': (768,),
            'mlp.act2.weight_numerator': (1, 6),
            'mlp.act2.weight_denominator': (8, 4),
            'mlp.fc2.weight': (192, 768),
            'mlp.fc2.bias': (192,),
        }.items():
            expected[f'blocks.{i}.{name}'] = shape
    assert state == expected


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    cls_token=st.booleans(),
    window_size=st.sampled_from([0, 2, 3]),
    rel_pos=st.booleans(),
)
def test_any_input_size(height, width, cls_token, window_size, rel_pos):
    model = small(
        arch={**SMALL, 'cls_token': cls_token},
        attention={'window_size': window_size, 'global_blocks': (3,), 'rel_pos': rel_pos},
        out_indices=(1, 3),
    ).eval()
    images = torch.randn(2, 3, height, width)
    h, w = math.ceil(height / 16), math.ceil(width / 16)
    if min(height, width) < 16 or max(h, w) < window_size:
        message = 'smaller than a patch' if min(height, width) < 16 else 'larger than the map'
        with pytest.raises(ConfigError, match=message):
            model(images)
        return
    with torch.no_grad():
        maps = model(images)
    for y in maps:
        assert y.shape == (2, 48, h, w)
        assert y.isfinite().all()
        assert y.is_contiguous()


def test_an_input_is_padded_with_zeros_at_the_right_and_bottom():
    model = small().eval()
    images = torch.randn(1, 3, 40, 55)
    padded = torch.zeros(1, 3, 48, 64)
    padded[..., :40, :55] = images
    assert torch.equal(model(images)[0], model(padded)[0])


def test_non_square_img_size_is_used_as_it_is():
    model = small(img_size=(64, 32))
    assert model.pos_embed.shape == (1, 1 + 4 * 2, 48)
    assert model(torch.randn(1, 3, 64, 32))[0].shape == (1, 48, 4, 2)


def test_out_indices():
    images = torch.randn(1, 3, 32, 32)
    every = small(out_indices=(0, 1, 2, 3)).eval()
    maps = every(images)
    assert len(maps) == 4
    assert every.out_channels == (48,) * 4
    for indices, expected in [
        (None, (3,)),
        (-1, (3,)),
        ((-3, -1), (1, 3)),
        ([3, 0], (0, 3)),  # always in order of depth, as ResNet's
        ((0, 1), (0, 1)),
    ]:
        model = small(out_indices=indices).eval()
        assert model.out_indices == expected
        for y, index in zip(model(images), expected, strict=True):
            assert torch.equal(y, maps[index])


def test_no_parameter_is_unused_in_training():
    for kwargs in ({'out_indices': (0, 1)}, {'pyramid': (8, 8, 8, 8), 'out_indices': (1, 2)}):
        model = small(**kwargs)
        sum(y.square().sum() for y in model(torch.randn(1, 3, 40, 40))).backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name


def test_the_final_norm_is_applied_to_the_last_map_only():
    images = torch.randn(1, 3, 32, 32)
    normed, plain = (
        small(out_indices=(2, 3)).eval(),
        small(arch={**SMALL, 'final_norm': False}, out_indices=(2, 3)).eval(),
    )
    plain.load_state_dict(normed.state_dict(), strict=False)
    with torch.no_grad():
        (a, b), (c, d) = normed(images), plain(images)
    assert torch.equal(a, c)
    torch.testing.assert_close(b, normed.norm(d.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    assert not [key for key in plain.state_dict() if key.startswith('norm.')]


def test_pyramid_levels_and_out_indices():
    images = torch.randn(1, 3, 64, 96)
    model = small(pyramid=(8, 16, 24, 32)).eval()
    maps = model(images)
    assert [tuple(y.shape) for y in maps] == [
        (1, 8, 16, 24),
        (1, 16, 8, 12),
        (1, 24, 4, 6),
        (1, 32, 2, 3),
    ]
    assert model.out_channels == (8, 16, 24, 32)
    picked = small(pyramid=(8, 16, 24, 32), out_indices=(1, 2, -1)).eval()
    missing, unexpected = picked.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert {key.split('.')[2] for key in unexpected} == {'stride4'}
    for y, z in zip(picked(images), maps[1:], strict=True):
        assert torch.equal(y, z)


def test_pyramid_strides_may_repeat():
    model = small(pyramid={'channels': (8, 16, 24, 32), 'strides': (4, 8, 8, 8)}).eval()
    maps = model(torch.randn(1, 3, 61, 96))
    assert [tuple(y.shape) for y in maps] == [
        (1, 8, 16, 24),
        (1, 16, 8, 12),
        (1, 24, 8, 12),
        (1, 32, 8, 12),
    ]
    default = small(pyramid=(8, 16, 24, 32))
    assert list(default.pyramid.levels) == ['stride4', 'stride8', 'stride16', 'stride32']
    two = small(pyramid={'channels': (16, 32), 'strides': (8, 32)}, out_indices=(-1,)).eval()
    assert [tuple(y.shape) for y in two(torch.randn(1, 3, 64, 96))] == [(1, 32, 2, 3)]


@settings(max_examples=10, deadline=None)
@given(height=st.integers(16, 70), width=st.integers(16, 70), patch_size=st.sampled_from([8, 16]))
def test_pyramid_levels_have_the_sizes_that_heads_expect(height, width, patch_size):
    model = small(pyramid=(8, 8, 8, 8), patch=patch_size).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, height, width))
    for y, stride in zip(maps, (4, 8, 16, 32), strict=True):
        assert y.shape == (1, 8, math.ceil(height / stride), math.ceil(width / stride))


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 4])
def test_frozen_stages(frozen_stages):
    model = small(frozen_stages=frozen_stages, drop_path_rate=0.2, **DROPOUT).train()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    expected = set()
    for name, _ in model.named_parameters():
        part, _, rest = name.partition('.')
        if part in ('cls_token', 'pos_embed', 'patch_embed') and frozen_stages >= 0:
            expected.add(name)
        if part == 'blocks' and int(rest.split('.')[0]) < frozen_stages:
            expected.add(name)
        if part == 'norm' and frozen_stages == 4:
            expected.add(name)
    assert frozen == expected
    assert [block.training for block in model.blocks] == [i >= frozen_stages for i in range(4)]
    assert model.patch_embed.training == (frozen_stages < 0)
    assert model.training
    if frozen_stages < 4:
        model(torch.randn(2, 3, 32, 32))[0].sum().backward()
        assert all((p.grad is None) == (n in frozen) for n, p in model.named_parameters())


@pytest.mark.parametrize('kwargs', [{}, {'frozen_stages': 1}, {'attention': WINDOWS}])
def test_with_cp_gives_the_same_maps_and_gradients(kwargs):
    results = []
    images = torch.randn(2, 3, 48, 48)
    for with_cp in (False, True):
        model = small(with_cp=with_cp, drop_path_rate=0.3, **{**DROPOUT, **kwargs}).train()
        torch.manual_seed(2)
        (y,) = model(images)
        y.square().sum().backward()
        results.append((y, {n: p.grad for n, p in model.named_parameters()}))
    (y, grads), (y_cp, grads_cp) = results
    assert torch.equal(y, y_cp)
    for name, grad in grads.items():
        if grad is None:
            assert grads_cp[name] is None
        else:
            torch.testing.assert_close(grads_cp[name], grad, rtol=0, atol=0, msg=name)


def test_drop_path_grows_linearly_to_the_last_block():
    model = small(drop_path_rate=0.3)
    for branch in ('drop_path1', 'drop_path2'):
        probs = [getattr(block, branch).prob for block in model.blocks]
        assert probs == pytest.approx([0, 0.1, 0.2, 0.3])


def test_global_blocks_default_to_the_last_of_each_quarter():
    def global_blocks(depth, **options):
        model = KAT({**SMALL, 'num_layers': depth}, attention={'window_size': 2, **options})
        return tuple(i for i, block in enumerate(model.blocks) if not block.attn.window_size)

    assert global_blocks(12) == (2, 5, 8, 11)
    assert global_blocks(6) == (1, 2, 4, 5)
    assert global_blocks(2) == (0, 1)
    assert global_blocks(4, global_blocks=()) == ()
    assert global_blocks(4, global_blocks=(-1, 0)) == (0, 3)


def test_windows_have_no_class_token_and_reach_beyond_themselves_in_global_blocks_only():
    local = small(attention={'window_size': 2, 'global_blocks': ()}).eval()
    assert local.cls_token is None
    assert local.pos_embed.shape == (1, 16, 48)
    images = torch.randn(1, 3, 64, 64)
    changed = images.clone()
    changed[..., 32:, 32:] += 1
    difference = (local(images)[0] - local(changed)[0]).abs().amax(1)[0]
    assert difference[2:, 2:].min() > 0
    assert difference[:2].max() == difference[:, :2].max() == 0
    mixed = small(attention={'window_size': 2, 'global_blocks': (1,)}).eval()
    assert (mixed(images)[0] - mixed(changed)[0]).abs().amax(1).min() > 0


def test_position_embeddings_of_another_grid_are_resized_on_loading():
    source, model = randomise(small()).eval(), small(img_size=(96, 80)).eval()
    assert model.load_state_dict(source.state_dict()) is not None
    images = torch.randn(1, 3, 96, 80)
    torch.testing.assert_close(model(images), source(images))
    assert torch.equal(model.pos_embed[:, 0], source.pos_embed[:, 0])


def test_windowed_model_drops_the_class_token_of_a_checkpoint_and_nothing_else(caplog):
    caplog.set_level('INFO', 'kat_mm')
    state = randomise(small()).state_dict()
    before = dict(state)
    model = small(attention=WINDOWS)
    model.load_state_dict(state, strict=True)
    assert [text.split(':')[0] for text in caplog.messages] == ['pos_embed', 'cls_token']
    assert torch.equal(model.pos_embed, state['pos_embed'][:, 1:])
    assert state.keys() == before.keys()
    wrapped = torch.nn.ModuleDict({'backbone': small(attention=WINDOWS)})
    wrapped.load_state_dict({f'backbone.{key}': value for key, value in state.items()})
    assert torch.equal(wrapped['backbone'].pos_embed, model.pos_embed)

    result = model.load_state_dict({**state, 'head.weight': torch.zeros(1)}, strict=False)
    assert result.unexpected_keys == ['head.weight']
    assert result.missing_keys == []
    state.pop('norm.bias')
    with pytest.raises(RuntimeError, match=r'norm\.bias'):
        model.load_state_dict(state)


def test_a_checkpoint_without_class_token_is_reported():
    state = randomise(small(arch={**SMALL, 'cls_token': False})).state_dict()
    with pytest.raises(RuntimeError, match='cls_token'):
        small().load_state_dict(state)
    model = small()
    assert model.load_state_dict(state, strict=False).missing_keys == ['cls_token']
    assert torch.equal(model.pos_embed[:, 1:], state['pos_embed'])


def test_a_model_loads_its_own_state_after_a_deep_copy():
    model = small()
    clone = copy.deepcopy(model)
    clone.load_state_dict(randomise(small(img_size=32)).state_dict())
    assert not torch.equal(model.pos_embed, clone.pos_embed)


def test_layer_scale():
    model = small(arch={**SMALL, 'layer_scale': 0.5})
    assert torch.equal(model.state_dict()['blocks.0.ls1.gamma'], torch.full((48,), 0.5))
    zero = small(arch={**SMALL, 'layer_scale': 0.0, 'final_norm': False}).eval()
    images = torch.randn(1, 3, 64, 64)
    tokens = zero.patch_embed(images)[0] + zero.pos_embed[:, 1:]
    torch.testing.assert_close(zero(images)[0].flatten(2), tokens.transpose(1, 2))


def test_layer_depths():
    model = small(pyramid=(8, 8, 8, 8))
    depths = {name: model.get_layer_depth(f'b.{name}', 'b.')[0] for name in model.state_dict()}
    assert depths['cls_token'] == depths['pos_embed'] == depths['patch_embed.proj.bias'] == 0
    assert depths['blocks.0.norm1.weight'] == 1
    assert depths['blocks.3.mlp.act2.weight_numerator'] == 4
    assert depths['norm.weight'] == depths['pyramid.levels.stride4.0.weight'] == 5
    assert model.get_layer_depth('neck.weight', 'b.') == (5, 6)


def test_bad_position_embeddings_are_loud():
    model = small()
    with pytest.raises(ValueError, match=r'\(1, 17, 40\).*\(1, 17, 48\)'):
        model.load_state_dict({'pos_embed': torch.zeros(1, 17, 40)}, strict=False)
    with pytest.raises(ValueError, match='12 positions'):
        model.load_state_dict({'pos_embed': torch.zeros(1, 12, 48)}, strict=False)


@pytest.mark.parametrize('ffn', ['gr_kan', 'mlp'])
def test_bf16_autocast_is_close_to_fp32(ffn):
    model = small(ffn=ffn, attention={'rel_pos': True}, pyramid=(8, 8, 8, 8)).eval()
    images = torch.randn(1, 3, 72, 40)
    with torch.no_grad():
        expected = model(images)
        with torch.autocast('cpu', torch.bfloat16):
            maps = model(images)
    for y, z in zip(maps, expected, strict=True):
        assert (y.float() - z).abs().mean() < 0.05 * z.abs().mean()


@pytest.mark.parametrize('kwargs', [{}, {'attention': {**WINDOWS, 'rel_pos': True}}])
def test_runs_on_the_meta_device(kwargs):
    with torch.device('meta'):
        maps = small(pyramid=(8, 8, 8, 8), **kwargs)(torch.empty(1, 3, 72, 100))
    assert [tuple(y.shape) for y in maps] == [
        (1, 8, 18, 25),
        (1, 8, 9, 13),
        (1, 8, 5, 7),
        (1, 8, 3, 4),
    ]


KINDS = [
    {},
    {
        'attention': {'window_size': 3, 'global_blocks': (1,), 'rel_pos': True},
        'pyramid': (8, 8, 8, 8),
    },
]


@pytest.mark.slow
@pytest.mark.parametrize('kwargs', KINDS)
def test_compiles_without_graph_breaks(kwargs):
    arch = {**SMALL, 'num_layers': 2}
    model = randomise(small(arch=arch, **kwargs)).eval()
    images = torch.randn(1, 3, 72, 100)
    with torch.no_grad():
        expected = model(images)
        maps = torch.compile(model, fullgraph=True, backend='aot_eager')(images)
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('kwargs', KINDS)
def test_exports(kwargs):
    arch = {**SMALL, 'num_layers': 2}
    model = randomise(small(arch=arch, **kwargs)).eval()
    images = torch.randn(1, 3, 72, 100)
    with torch.no_grad():
        program = torch.export.export(model, (images,))
        torch.testing.assert_close(program.module()(images), model(images))


@pytest.mark.slow
def test_exports_with_a_dynamic_batch_and_size():
    model = randomise(small(arch={**SMALL, 'num_layers': 2})).eval()
    batch, h, w = (torch.export.Dim(name, min=2, max=32) for name in ('b', 'h', 'w'))
    program = torch.export.export(
        model, (torch.randn(2, 3, 80, 112),), dynamic_shapes=({0: batch, 2: 16 * h, 3: 16 * w},)
    )
    for shape in ((3, 3, 96, 48), (2, 3, 64, 64)):
        images = torch.randn(shape)
        torch.testing.assert_close(program.module()(images), model(images), rtol=1e-4, atol=1e-5)
