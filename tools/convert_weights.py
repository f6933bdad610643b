"""Makes the weights of a KAT from those of a trained ViT: tools/convert_weights.py VIT KAT

The KAT computes what the ViT computes, up to the error of a fit: act1 of each layer is the
identity, act2 the rational that is fitted to GELU. Both models then run on a random batch, and the
largest difference of their features is printed. Takes weights of timm, DeiT, AugReg (.npz), MAE,
DINO, DINOv2 and CLIP's vision tower, and writes the layout of the published KAT checkpoints.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from kat_mm.checkpoint import read_checkpoint, to_kat_keys, weights_of
from kat_mm.conversion.vit import ACTIVATIONS, INTERVAL, fit_activation, to_timm_keys, vit_to_kat
from kat_mm.engine import cli
from kat_mm.errors import ConfigError, DataError
from kat_mm.models.timm_entry import KATTransformer


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', help='file, URL or Hugging Face id of the weights of a ViT')
    parser.add_argument('out', type=Path, help='file to write: .pth or .safetensors')
    parser.add_argument('--num-heads', type=int, help='by default one for 64 channels')
    parser.add_argument(
        '--activation', choices=list(ACTIVATIONS), help="by default GELU, and CLIP's own for CLIP"
    )
    return parser.parse_args()


def read_vit(source: str) -> dict[str, Tensor]:
    """Returns the weights of a ViT with timm's keys."""
    if source.endswith('.npz'):
        return read_jax(source)
    return to_timm_keys(to_kat_keys(weights_of(read_checkpoint(source), f'checkpoint {source}')))


def read_jax(path: str) -> dict[str, Tensor]:
    """Returns AugReg's weights, which timm can read into a model of the right size."""
    if not Path(path).is_file():
        raise DataError(f'checkpoint {path} does not exist')
    arrays = np.load(path)
    if 'embedding/kernel' not in arrays:
        raise DataError(f'checkpoint {path} has no embedding/kernel, so it is no ViT of AugReg')
    patch, _, _, dims = arrays['embedding/kernel'].shape
    depth = len({k.split('/')[1] for k in arrays if k.startswith('Transformer/encoderblock_')})
    rows = arrays['Transformer/posembed_input/pos_embedding'].shape[1] - 1
    classes = arrays['head/kernel'].shape[1] if 'head/kernel' in arrays else 0
    model = VisionTransformer(
        img_size=math.isqrt(rows) * patch,
        patch_size=patch,
        embed_dim=dims,
        depth=depth,
        num_heads=arrays[
            'Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/bias'
        ].shape[0],
        num_classes=classes,
        weight_init='skip',
    )
    model.load_pretrained(path)
    return model.state_dict()


def architecture(weights: dict[str, Tensor], num_heads: int | None) -> dict:
    """Returns the arguments of timm's VisionTransformer that weights belong to."""
    dims, channels, patch, _ = weights['patch_embed.proj.weight'].shape
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
        num_heads=num_heads or max(dims // 64, 1),
        mlp_ratio=weights['blocks.0.mlp.fc1.weight'].shape[0] / dims,
        qkv_bias='blocks.0.attn.qkv.bias' in weights,
        init_values=1.0 if 'blocks.0.ls1.gamma' in weights else None,
        class_token=bool(prefix),
        reg_tokens=registers,
        no_embed_class=no_embed_class and bool(prefix),
        pre_norm='norm_pre.weight' in weights,
        final_norm='norm.weight' in weights or 'fc_norm.weight' in weights,
        fc_norm='fc_norm.weight' in weights,
        global_pool='avg' if 'fc_norm.weight' in weights else 'token',
        num_classes=weights['head.weight'].shape[0] if 'head.weight' in weights else 0,
        weight_init='skip',
    )


def load(model: torch.nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Loads all weights into a model.

    Raises:
        DataError: if they are of another architecture.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise DataError(
            f'checkpoint {source} is not of a ViT that KAT can follow: {" ".join(lines)}'
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


def write(weights: dict[str, Tensor], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == '.safetensors':
        from safetensors.torch import save_file

        save_file({key: value.contiguous() for key, value in weights.items()}, out)
    else:
        torch.save({'state_dict': weights}, out)


def main():
    args = parse_args()
    if args.out.suffix not in ('.pth', '.safetensors'):
        raise ConfigError(f'{args.out}: the name must end with .pth or .safetensors')
    weights = read_vit(args.source)
    activation = args.activation or ('quick_gelu' if 'norm_pre.weight' in weights else 'gelu')
    converted = vit_to_kat(weights, activation)
    sizes = architecture(weights, args.num_heads)
    act = timm.layers.get_act_layer(activation)
    vit, kat = VisionTransformer(act_layer=act, **sizes), KATTransformer(**sizes)
    load(vit, weights, args.source)
    load(kat, converted, args.source)
    largest, relative = difference(vit, kat, sizes['img_size'])
    write(kat.state_dict(), args.out)
    print(', '.join(f'{key}={value}' for key, value in sizes.items() if key != 'weight_init'))
    fit = fit_activation(activation)
    print(f'{activation}: fitted to {fit.error:.2g} on [-{INTERVAL:g}, {INTERVAL:g}]')
    print(f'features of a random batch differ by {largest:.3g} at most, {relative:.2%} in the mean')
    print(args.out)


if __name__ == '__main__':
    cli.run_reporting_errors(main)
