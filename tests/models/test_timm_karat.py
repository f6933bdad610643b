"""timm's models of Kolmogorov-Arnold attention."""

import pytest
import torch
from timm.layers import Mlp
from torch import nn

import kat_mm  # noqa: F401
from kat_mm.errors import ConfigError, DataError
from kat_mm.models.ffn.gr_kan import GRKAN

timm = pytest.importorskip('timm')

# Of the softmax model, and N r h L (2 G + 1) for 197 tokens.
PARAMETERS = dict(
    karat_tiny_patch16_224=5_717_416 + 197 * 12 * 3 * 12 * 7,
    karat_small_patch16_224=22_050_664 + 197 * 12 * 6 * 12 * 7,
    karat_base_patch16_224=86_567_656 + 197 * 12 * 12 * 12 * 3,
)
GATED = dict(base='softmax')
UNIVERSAL = dict(shared='operator')


def create(name='karat_tiny_patch16_224', **kwargs):
    """A model of two blocks, which is fast."""
    torch.manual_seed(0)
    return timm.create_model(name, **{'depth': 2, 'img_size': 32, **kwargs}).eval()


@pytest.mark.parametrize('name', PARAMETERS)
@pytest.mark.parametrize(
    ('attention', 'ffn', 'more'),
    [('KArAt', 'mlp', 0), (dict(rank=12), 'gr_kan', 912), (dict(UNIVERSAL), 'mlp', None)],
)
def test_number_of_parameters(name, attention, ffn, more):
    with torch.device('meta'):
        model = timm.create_model(name, attention=attention, ffn=ffn, weight_init='skip')
    blocks = 1 if more is None else 12
    functions = PARAMETERS[name] - timm_vit_parameters(name)
    expected = timm_vit_parameters(name) + functions * blocks // 12 + (more or 0)
    assert sum(p.numel() for p in model.parameters()) == expected


def timm_vit_parameters(name):
    with torch.device('meta'):
        model = timm.create_model(name.replace('karat', 'vit'), weight_init='skip')
    return sum(p.numel() for p in model.parameters())


def test_names_are_known_and_have_no_weights():
    assert timm.list_models('karat_*') == sorted(PARAMETERS)
    assert timm.list_models('karat_*', pretrained=True) == []
    with pytest.raises(DataError, match=r'karat_tiny.*no pretrained weights .*dict\(file='):
        create(pretrained=True)


def test_sizes_have_the_grid_size_of_the_paper():
    for name, grid_size in zip(sorted(PARAMETERS), (1, 3, 3), strict=True):
        with torch.device('meta'):
            model = create(name, weight_init='skip', attention=dict(rank=2))
        assert model.blocks[1].attn.operator.units.basis.grid_size == grid_size
    basis = dict(type='chebyshev', degree=2)
    assert create(attention=dict(basis=basis)).blocks[0].attn.operator.units.basis.count == 3


@pytest.mark.parametrize('attention', ['KArAt', GATED, UNIVERSAL], ids=str)
@pytest.mark.parametrize('ffn', ['mlp', 'gr_kan'])
def test_trains_as_with_grad_checkpointing(attention, ffn):
    model, x = create(attention=attention, ffn=ffn), torch.randn(2, 3, 32, 32)
    assert {type(block.mlp) for block in model.blocks} == {Mlp if ffn == 'mlp' else GRKAN}
    gradients = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert gradients[0].keys() == dict(model.named_parameters()).keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])
    first, second = (block.attn.operator for block in model.blocks)
    assert (first is second) == (attention == UNIVERSAL)


def test_features():
    model, x = create(), torch.randn(2, 3, 32, 32)
    features, maps = model.forward_intermediates(x, indices=[0, 1], norm=True)
    torch.testing.assert_close(features, model.forward_features(x))
    torch.testing.assert_close(maps[1].flatten(2).mT, features[:, 1:])
    maps = create(features_only=True, out_indices=(0, 1))(x)
    assert [tuple(m.shape) for m in maps] == [(2, 192, 2, 2)] * 2
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)


def test_images_of_another_size_resample_the_operator():
    fixed, dynamic, x = create(), create(dynamic_img_size=True), torch.randn(1, 3, 48, 64)
    assert torch.equal(dynamic(torch.ones(1, 3, 32, 32)), fixed(torch.ones(1, 3, 32, 32)))
    found = dynamic(x)
    fixed.set_input_size((48, 64))
    torch.testing.assert_close(fixed(x), found)
    operator = fixed.blocks[0].attn.operator
    assert operator.units.coefficients.shape[2] == 5  # of the size that it is made for
    tokens = torch.randn(1, 13, 192)
    attention = fixed.blocks[0].attn
    torch.testing.assert_close(
        fixed.blocks[0](tokens) - tokens,
        (lambda y: y + fixed.blocks[0].mlp(fixed.blocks[0].norm2(tokens + y)))(
            attention(fixed.blocks[0].norm1(tokens), (3, 4))
        ),
    )


def test_no_weight_decay_on_functions_and_gates():
    from timm.optim import create_optimizer_v2

    for attention in (dict(GATED, published_scales=True), dict(GATED, **UNIVERSAL)):
        model = create(attention=attention)
        optimizer = create_optimizer_v2(model, 'adamw', lr=1, weight_decay=0.05, layer_decay=0.5)
        groups = [(g['weight_decay'], g['lr_scale'], g['params']) for g in optimizer.param_groups]
        found = {id(p): (decay, scale) for decay, scale, params in groups for p in params}
        for name, parameter in model.named_parameters():
            decay, scale = found[id(parameter)]
            if '.attn.' in name:
                assert scale == (0.25 if '.0.' in name else 0.5)
                assert bool(decay) == name.endswith('.weight'), name


def test_starts_as_the_backbone_does():
    model = create(attention=GATED, ffn='gr_kan', depth=1)
    attention = model.blocks[0].attn
    q, k, _ = attention.qkv.weight.view(3, 3, 64, 192).unbind()
    assert (q[0].T @ k[0]).trace() > 20  # mimetic: near a multiple of the identity
    assert not attention.gate.any()
    x = torch.randn(64, 197, 192)
    assert model.blocks[0].mlp(x).var().item() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize(('name', 'ffn'), [('vit_tiny', 'mlp'), ('kat_tiny', 'gr_kan')])
def test_weights_of_a_softmax_model_are_the_start_of_a_gated_one(name, ffn, tmp_path, caplog):
    caplog.set_level('INFO')
    trained = create(f'{name}_patch16_224')
    for parameter in trained.parameters():
        nn.init.normal_(parameter, std=0.1)
    torch.save(trained.state_dict(), tmp_path / 'a.pth')
    overlay = {'file': str(tmp_path / 'a.pth')}
    model = create(attention=GATED, ffn=ffn, pretrained=True, pretrained_cfg_overlay=overlay)
    [text] = [text for text in caplog.messages if 'drawn anew' in text]
    drawn = text.partition('drawn anew: ')[2].split(', ')
    assert {key.split('.')[3] for key in drawn} == {'gate', 'operator'}
    assert len(drawn) == 6
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), trained(x))
    torch.save(model.state_dict(), tmp_path / 'a.pth')
    again = create(attention=GATED, ffn=ffn, pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(again(x), model(x))


def test_torch_compile_and_export_agree_with_it():
    model, x = create(attention=GATED, ffn='gr_kan'), torch.randn(2, 3, 32, 32)
    nn.init.ones_(model.blocks[0].attn.gate)
    torch._dynamo.reset()
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
        torch.testing.assert_close(compiled(x), expected)
        programs = [torch.export.export(model, (x,)) for _ in range(2)]
        torch.testing.assert_close(programs[0].module()(x), expected)
    assert str(programs[0].graph) == str(programs[1].graph)


def test_fx_takes_an_attention_as_one_node():
    model, x = create(), torch.randn(2, 3, 32, 32)
    traced = timm.models.create_feature_extractor(model, ['blocks.0.attn', 'head'])
    assert traced(x)['blocks.0.attn'].shape == (2, 5, 192)
    torch.testing.assert_close(traced(x)['head'], model(x))
    traced(x)['head'].sum().backward()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(qk_norm=True), 'KArAt: qk_norm=True has no effect'),
        (dict(patch_drop_rate=0.5), 'patch_drop_rate=0.5 has no effect'),
        (dict(attn_drop_rate=0.1), 'attn_drop_rate=0.1 has no effect'),
        (dict(proj_bias=False), 'proj_bias=False has no effect'),
        (dict(ffn='gr_kan', act_layer='relu'), "act_layer='relu' has no effect"),
        (dict(attention='karat'), "unknown attention 'karat'; known: softmax, KArAt"),
        (dict(attention=dict(window_size=7)), 'attention.window_size is of windows, which timm'),
        (dict(attention=dict(ranks=7)), "'KArAt' takes no ranks; it takes basis, rank, form"),
        (dict(attention=dict(basis='sin')), "unknown basis 'sin'; known: b_spline, chebyshev"),
        (dict(attention=['KArAt']), 'must be a name or a dict with a type'),
        (dict(ffn='kan'), "unknown ffn 'kan'; known: gr_kan, mlp"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ConfigError, match=message):
        create(**arguments)


def test_masks_are_refused():
    with pytest.raises(ConfigError, match='neither attn_mask nor is_causal'):
        create().forward_features(torch.randn(1, 3, 32, 32), is_causal=True)
