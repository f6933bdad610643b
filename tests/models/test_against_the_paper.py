"""The models against the paper's formulas, in NumPy and float64 on a published state dict alone."""

from functools import partial

import numpy as np
import pytest
import torch
from numpy.polynomial.polynomial import polyval

from kat_mm.models import KAT, load_pretrained

timm = pytest.importorskip('timm')

PATCH = 16
SIZES = {  # those of the published KAT-T, and small ones
    'tiny': dict(dims=192, depth=12, heads=3, hidden=768, size=224, classes=1000),
    'small': dict(dims=32, depth=2, heads=4, hidden=64, size=48, classes=5),
}


def drawn_weights(dims, depth, heads, hidden, size, classes):
    """Weights in the published layout, far from where models start, with no two groups alike."""
    random = np.random.default_rng(0)

    def normal(*shape, mean=0.0, std=1.0):
        return random.normal(mean, std, shape)

    weights = {
        'cls_token': normal(1, 1, dims),
        'pos_embed': normal(1, 1 + (size // PATCH) ** 2, dims),
        'patch_embed.proj.weight': normal(dims, 3, PATCH, PATCH, std=(3 * PATCH**2) ** -0.5),
        'patch_embed.proj.bias': normal(dims, std=0.2),
    }
    linears, norms = {'head': (classes, dims)}, ['norm']
    for block in (f'blocks.{i}.' for i in range(depth)):
        norms += [f'{block}norm1', f'{block}norm2']
        linears[f'{block}attn.qkv'] = (3 * dims, dims)
        linears[f'{block}attn.proj'] = (dims, dims)
        linears[f'{block}mlp.fc1'] = (hidden, dims)
        linears[f'{block}mlp.fc2'] = (dims, hidden)
        for act in ('act1', 'act2'):
            weights[f'{block}mlp.{act}.weight_numerator'] = normal(1, 6)
            # Of both signs, and not near zero, where P would outgrow Q.
            b = random.uniform(0.5, 2, (8, 4)) * random.choice([-1, 1], (8, 4))
            weights[f'{block}mlp.{act}.weight_denominator'] = b
    for name, shape in linears.items():
        weights[f'{name}.weight'] = normal(*shape, std=shape[1] ** -0.5)
        weights[f'{name}.bias'] = normal(shape[0], std=0.2)
    for name in norms:
        weights[f'{name}.weight'] = normal(dims, mean=1, std=0.2)
        weights[f'{name}.bias'] = normal(dims, std=0.2)
    return {key: torch.from_numpy(value).float() for key, value in weights.items()}


def group_rational(x, a, b):
    """P(x) / Q(x) with one numerator, and a denominator for each group of adjacent channels."""
    y = np.empty_like(x)
    width = x.shape[-1] // len(b)
    for group, b_group in enumerate(b):
        channels = slice(group * width, (group + 1) * width)
        z = x[..., channels]
        y[..., channels] = polyval(z, a[0]) / polyval(abs(z), [1, *abs(b_group)])
    return y


def paper(weights, images, depth, heads):
    """Returns the features of all tokens, the class token's first, and the logits."""
    w = {key: value.double().numpy() for key, value in weights.items()}

    def linear(name, x):
        return x @ w[f'{name}.weight'].T + w[f'{name}.bias']

    def norm(name, x):
        x = x - x.mean(-1, keepdims=True)
        x /= np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x * w[f'{name}.weight'] + w[f'{name}.bias']

    def attention(name, x):
        parts = np.split(linear(f'{name}.qkv', x), 3 * heads, -1)
        outputs = []
        for q, k, v in zip(parts[:heads], parts[heads:-heads], parts[-heads:], strict=True):
            scores = np.exp(q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5)
            outputs.append(scores / scores.sum(-1, keepdims=True) @ v)
        return linear(f'{name}.proj', np.concatenate(outputs, -1))

    def gr_kan(name, x):
        for i in (1, 2):
            act = f'{name}.act{i}.weight_'
            x = group_rational(x, w[f'{act}numerator'], w[f'{act}denominator'])
            x = linear(f'{name}.fc{i}', x)
        return x

    tokens = [w['cls_token'].repeat(len(images), 0)]
    projection = w['patch_embed.proj.weight'].reshape(-1, 3 * PATCH**2)
    for top in range(0, images.shape[2], PATCH):
        for left in range(0, images.shape[3], PATCH):
            patch = images[:, None, :, top : top + PATCH, left : left + PATCH].double().numpy()
            patch = patch.reshape(len(images), 1, -1)
            tokens.append(patch @ projection.T + w['patch_embed.proj.bias'])
    x = np.concatenate(tokens, 1) + w['pos_embed']
    for block in (f'blocks.{i}.' for i in range(depth)):
        x = x + attention(f'{block}attn', norm(f'{block}norm1', x))
        x = x + gr_kan(f'{block}mlp', norm(f'{block}norm2', x))
    x = norm('norm', x)
    return torch.from_numpy(x), torch.from_numpy(linear('head', x[:, 0]))


@pytest.mark.parametrize(
    ('name', 'dtype', 'tolerance'), [('tiny', torch.float32, 1e-5), ('small', torch.float64, 1e-12)]
)
def test_logits_and_maps_are_those_of_the_paper(name, dtype, tolerance, tmp_path):
    sizes = SIZES[name]
    side, depth, heads = sizes['size'], sizes['depth'], sizes['heads']
    weights = drawn_weights(**sizes)
    path = str(tmp_path / 'kat.pth')
    torch.save(weights, path)
    images = torch.randn(2, 3, side, side)
    features, logits = paper(weights, images, depth, heads)
    maps = features[:, 1:].mT.unflatten(2, (side // PATCH,) * 2)

    classifier = timm.create_model(
        'kat_tiny_patch16_224',
        pretrained=True,
        pretrained_cfg_overlay=dict(file=path, num_classes=sizes['classes']),
        num_classes=sizes['classes'],
        img_size=side,
        embed_dim=sizes['dims'],
        depth=depth,
        num_heads=heads,
        mlp_ratio=sizes['hidden'] / sizes['dims'],
    )
    arch = dict(
        embed_dims=sizes['dims'],
        num_layers=depth,
        num_heads=heads,
        feedforward_channels=sizes['hidden'],
    )
    backbone = KAT(arch, img_size=side)
    load_pretrained(backbone, path)
    close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    images = images.to(dtype)
    with torch.no_grad():
        close(classifier.eval().to(dtype)(images).double(), logits)
        close(backbone.eval().to(dtype)(images)[0].double(), maps)
