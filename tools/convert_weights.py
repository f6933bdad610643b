"""Makes the weights of a KAT from those of a trained ViT: tools/convert_weights.py VIT KAT

The KAT computes what the ViT computes, up to the error of a fit: act1 of each layer is the
identity, act2 the rational that is fitted to GELU. Both models then run on a random batch, and the
largest difference of their features is printed. Takes weights of timm, DeiT, AugReg (.npz), MAE,
DINO, DINOv2 and CLIP's vision tower, and writes the layout of the published KAT checkpoints, with
--patch-size and --img-size for patches and images of other sizes.
"""

import argparse
import math
import re
from pathlib import Path

import numpy as np
import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from kat_mm.command_line import run_reporting_errors
from kat_mm.errors import ConfigError, DataError
from kat_mm.models.timm_models import KATTransformer
from kat_mm.rational import published_state_dict
from kat_mm.weights.activation_fits import ACTIVATIONS, INTERVAL, ActivationFit
from kat_mm.weights.layout import to_kat_keys, weights_of
from kat_mm.weights.reading import read_checkpoint
from kat_mm.weights.vit import (
    activation_fit,
    activation_of,
    check_vit,
    resample_patches,
    to_timm_keys,
    vit_to_kat,
)
from kat_mm.weights.writing import check_name, write_weights

# Published ViTs have a head for 64 channels, but for the widths of SoViT-400m, ViT-H, g and G.
NUM_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', help='file, URL or Hugging Face id of the weights of a ViT')
    parser.add_argument('out', type=Path, help='file to write: .pth or .safetensors')
    parser.add_argument('--num-heads', type=int, help='by default that of published ViTs as wide')
    parser.add_argument(
        '--activation',
        choices=list(ACTIVATIONS),
        help='by default gelu, and for CLIP quick_gelu, which OpenAI trained it with',
    )
    parser.add_argument(
        '--interval',
        type=float,
        default=INTERVAL,
        help='largest input of the activation that the fit serves, by default %(default)g',
    )
    parser.add_argument(
        '--patch-size', type=int, help='resamples the patch embedding to patches of so many pixels'
    )
    parser.add_argument(
        '--img-size',
        type=int,
        help='resamples the position embeddings to images of so many pixels; by default there are '
        'as many patches as before',
    )
    return parser.parse_args()


def read_vit(source: str) -> tuple[dict[str, Tensor], int]:
    """Returns the weights of a ViT with timm's keys, and its number of heads.

    No layout but AugReg's holds that, so it is that of published ViTs.
    """
    if source.endswith('.npz'):
        return read_jax(source)
    weights = weights_of(read_checkpoint(source), f'checkpoint {source}')
    weights = to_timm_keys(to_kat_keys(weights))
    check_vit(weights)
    dims = weights['pos_embed'].shape[2]
    return weights, NUM_HEADS.get(dims, max(dims // 64, 1))


def read_jax(path: str) -> tuple[dict[str, Tensor], int]:
    """Returns AugReg's weights, which timm can read into a model of the right size."""
    if not Path(path).is_file():
        raise DataError(f'checkpoint {path} does not exist')
    try:
        arrays = np.load(path)
    except Exception as error:  # damaged files fail in many ways
        raise DataError(
            f'checkpoint {path} is damaged or no .npz file. Copy or download it again'
        ) from error
    if 'embedding/kernel' not in arrays:
        raise DataError(f'checkpoint {path} has no embedding/kernel, so it is no ViT of AugReg')
    patch, _, _, dims = arrays['embedding/kernel'].shape
    depth = len({k.split('/')[1] for k in arrays if k.startswith('Transformer/encoderblock_')})
    rows = arrays['Transformer/posembed_input/pos_embedding'].shape[1] - 1
    classes = arrays['head/kernel'].shape[1] if 'head/kernel' in arrays else 0
    attention = 'Transformer/encoderblock_0/MultiHeadDotProductAttention_1'
    heads = arrays[f'{attention}/query/bias'].shape[0]
    model = VisionTransformer(
        img_size=math.isqrt(rows) * patch,
        patch_size=patch,
        embed_dim=dims,
        depth=depth,
        num_heads=heads,
        num_classes=classes,
        weight_init='skip',
    )
    model.load_pretrained(path)
    return model.state_dict(), heads


def architecture(weights: dict[str, Tensor], num_heads: int) -> dict:
    """Returns the arguments of timm's VisionTransformer that weights belong to.

    Raises:
        ConfigError: for a number of heads that does not divide the channels.
    """
    fc_norm = 'fc_norm.weight' in weights
    dims, channels, patch, _ = weights['patch_embed.proj.weight'].shape
    if num_heads < 1 or dims % num_heads:
        raise ConfigError(f'--num-heads {num_heads} does not divide the {dims} channels')
    prefix = int('cls_token' in weights)
    registers = weights['reg_token'].shape[1] if 'reg_token' in weights else 0
    rows = weights['pos_embed'].shape[1]
    no_embed_class = math.isqrt(rows) ** 2 == rows
    side = math.isqrt(rows if no_embed_class else rows - prefix - registers)
    return dict(
        img_size=side * patch,
        patch_size=patch,
        in_chans=channels,
        embed_dim=dims,
        depth=1 + max(int(key.split('.')[1]) for key in weights if key.startswith('blocks.')),
        num_heads=num_heads,
        mlp_ratio=weights['blocks.0.mlp.fc1.weight'].shape[0] / dims,
        qkv_bias='blocks.0.attn.qkv.bias' in weights,
        init_values=1.0 if 'blocks.0.ls1.gamma' in weights else None,
        class_token=bool(prefix),
        reg_tokens=registers,
        no_embed_class=no_embed_class and bool(prefix),
        pre_norm='norm_pre.weight' in weights,
        final_norm='norm.weight' in weights or fc_norm,
        fc_norm=fc_norm,
        global_pool='avg' if fc_norm or not prefix else 'token',
        num_classes=weights['head.weight'].shape[0] if 'head.weight' in weights else 0,
        weight_init='skip',
    )


def fitted(activation: str, interval: float) -> ActivationFit:
    """Returns the stored fit of an activation, or for another interval a new one.

    Raises:
        ConfigError: for an interval that `fit_rational` refuses.
    """
    if interval == INTERVAL:
        return activation_fit(activation)
    from kat_mm.fitting.fit import fit_rational  # takes scipy

    try:
        fit = fit_rational(ACTIVATIONS[activation], -interval, interval)
    except ValueError as error:
        raise ConfigError(f'{activation}: {error}') from error
    return ActivationFit(fit.numerator, fit.denominator, fit.error)


def resample(
    weights: dict[str, Tensor], sizes: dict, patch_size: int | None, img_size: int | None
) -> None:
    """Brings weights and their sizes to patches and images of other sizes, in pixels."""
    grid = sizes['img_size'] // sizes['patch_size']
    patch_size = patch_size or sizes['patch_size']
    img_size = img_size or grid * patch_size
    if img_size % patch_size or min(img_size, patch_size) < 1:
        raise ConfigError(
            f'--img-size {img_size} is no multiple of the patch size, {patch_size} pixels'
        )
    sizes.update(img_size=img_size, patch_size=patch_size)
    resample_patches(weights, (patch_size, patch_size))
    weights['pos_embed'] = resample_abs_pos_embed(
        weights['pos_embed'],
        [img_size // patch_size] * 2,
        [grid] * 2,
        weights['pos_embed'].shape[1] - grid**2,
    )


def load(model: torch.nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Loads all weights into a model.

    Raises:
        DataError: if they are of another architecture.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        lines = ' '.join(line.strip() for line in str(error).splitlines()[1:3])
        reason = re.sub(r'(("[^"]+", ){2}"[^"]+")(, "[^"]+")+', r'\1, ...', lines)
        raise DataError(
            f'checkpoint {source} is not of a ViT that KAT can follow: {reason}'
        ) from error
    model.eval()


@torch.no_grad()
def difference(vit: torch.nn.Module, kat: torch.nn.Module, size: int) -> tuple[float, float]:
    """Computes the largest and the relative difference of features on a random batch."""
    torch.manual_seed(0)
    images = torch.randn(2, vit.patch_embed.proj.in_channels, size, size)
    expected, features = vit.forward_features(images), kat.forward_features(images)
    error = (features - expected).abs()
    return error.max().item(), (error.square().mean() / expected.square().mean()).sqrt().item()


def main():
    args = parse_args()
    check_name(args.out)
    weights, num_heads = read_vit(args.source)
    activation = args.activation or activation_of(weights)
    sizes = architecture(weights, num_heads if args.num_heads is None else args.num_heads)
    resample(weights, sizes, args.patch_size, args.img_size)
    act = timm.layers.get_act_layer(activation)
    vit, kat = VisionTransformer(act_layer=act, **sizes), KATTransformer(**sizes)
    load(vit, weights, args.source)
    fit = fitted(activation, args.interval)
    load(kat, vit_to_kat(weights, fit), args.source)
    largest, relative = difference(vit, kat, sizes['img_size'])
    write_weights(published_state_dict(kat), args.out)
    print(', '.join(f'{key}={value}' for key, value in sizes.items() if key != 'weight_init'))
    print(f'{activation}: fitted to {fit.error:.2g} on [-{args.interval:g}, {args.interval:g}]')
    print(f'features of a random batch differ by {largest:.3g} at most, {relative:.2%} in the mean')
    print(args.out)


if __name__ == '__main__':
    run_reporting_errors(main)
