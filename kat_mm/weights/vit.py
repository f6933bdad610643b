"""Turns the weights of a trained ViT into those of a KAT that computes the same."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from .activation_fits import FITS, ActivationFit

CLIP = (  # names in OpenAI's CLIP and in OpenCLIP, and timm's
    ('conv1', 'patch_embed.proj'),
    ('positional_embedding', 'pos_embed'),
    ('class_embedding', 'cls_token'),
    ('transformer.resblocks.', 'blocks.'),
    ('ln_pre', 'norm_pre'),
    ('ln_post', 'norm'),
    ('ln_', 'norm'),
    ('in_proj_', 'qkv.'),
    ('out_proj', 'proj'),
    ('mlp.c_fc', 'mlp.fc1'),
    ('mlp.c_proj', 'mlp.fc2'),
)
TO_KAT = '; kat_mm.to_kat(model) puts GR-KAN layers into such a model itself'
UNFIT = {  # parts of other architectures, by a pattern of their keys, and the way out
    r'\.w12\.|\.w3\.|\.fc1_g\.': ('gated MLPs', ''),
    r'relative_position_bias|rel_pos_bias|\.rel_pos\.|shared_rel_pos': (
        'biases of relative positions that depend on no query, as BEiT has',
        TO_KAT,
    ),
    r'\.q_norm\.|\.k_norm\.|\.q_bias$': ('norms or separate biases of queries and keys', TO_KAT),
}
REQUIRED = 'patch_embed.proj.weight', 'pos_embed', 'blocks.0.mlp.fc1.weight'


def is_vit(weights: dict[str, Tensor]) -> bool:
    """Tells whether weights in timm's layout are of a transformer with plain MLPs."""
    return all(key in weights for key in REQUIRED) and not any('.mlp.act' in k for k in weights)


def vision_part(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of a ViT without what pretraining added.

    That is decoders, mask tokens, heads of distillation, or a tower of texts.
    """
    if 'visual.class_embedding' in weights:  # CLIP
        start = 'visual.'
        weights = {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}
    # CLIP's tower has a projection into the space of texts.
    unused = {'proj', 'mask_token'} if 'class_embedding' in weights else {'mask_token'}
    return {
        key: value
        for key, value in weights.items()
        if not key.startswith(('decoder', 'head_dist.')) and key not in unused
    }


def to_timm_keys(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gives the `vision_part` of a ViT of DeiT, MAE, DINO, DINOv2 or CLIP timm's keys."""
    weights = vision_part(weights)
    if 'class_embedding' in weights:
        return _from_clip(weights)
    trained = {
        re.sub(r'\bgamma_([12])$', r'ls\1.gamma', key): value for key, value in weights.items()
    }
    # Registers here have no position, and then the class token has none either.
    if 'register_tokens' in trained:  # DINOv2's
        _move_positions(trained, ('cls_token',))
        trained['reg_token'] = trained.pop('register_tokens')
    if 'dist_token' in trained:  # DeiT's, which is a register with a position
        _move_positions(trained, ('cls_token', 'dist_token'))
        trained['reg_token'] = trained.pop('dist_token')
    return trained


def _move_positions(weights: dict[str, Tensor], tokens: Sequence[str]) -> None:
    """Adds the first rows of the position embeddings to the tokens whose positions they are."""
    for token in tokens:
        row, weights['pos_embed'] = weights['pos_embed'].tensor_split([1], 1)
        weights[token] = weights[token] + row


def _from_clip(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in weights.items():
        for old, new in CLIP:
            key = key.replace(old, new)
        renamed[key] = value.float()
    renamed['cls_token'] = renamed['cls_token'].view(1, 1, -1)
    renamed['pos_embed'] = renamed['pos_embed'].unsqueeze(0)
    return renamed


def check_parts(weights: dict[str, Tensor]) -> None:
    """Checks that weights in timm's layout have no part that KAT has no place for.

    Raises:
        DataError: if they have; it names the part and the way out.
    """
    for pattern, (part, way_out) in UNFIT.items():
        if key := next((key for key in weights if re.search(pattern, key)), None):
            raise DataError(
                f'these weights have {part} ({key}), for which KAT has no place{way_out}'
            )
    if _is_post_norm(weights):
        raise DataError(
            "these weights are those of a post-norm ViT, as timm's vit_base_patch16_rpn_224: it "
            f'has its norms behind attention and MLPs, KAT in front of them{TO_KAT}'
        )


def _is_post_norm(weights: Mapping[str, Tensor]) -> bool:
    """Tells whether weights are those of timm's ViTs with ResPostBlock.

    These have the keys of pre-norm ViTs, and are told from all of timm's by parts that they lack:
    there are neither class token, registers, biases of queries nor a norm before pooling.
    """
    lacks = 'cls_token', 'reg_token', 'norm.weight', 'norm_pre.weight', 'blocks.0.attn.qkv.bias'
    has = 'fc_norm.weight', 'blocks.0.norm1.weight', 'blocks.0.attn.qkv.weight'
    no_scale = 'blocks.0.ls1.gamma' not in weights
    return no_scale and all(k in weights for k in has) and not any(k in weights for k in lacks)


def check_vit(weights: dict[str, Tensor]) -> None:
    """Checks that weights in timm's layout are of a ViT that can become a KAT.

    Raises:
        DataError: for weights of another architecture, or of one that KAT has no place for.
    """
    check_parts(weights)
    if missing := [key for key in REQUIRED if key not in weights]:
        raise DataError(f'these weights are not those of a ViT: {missing[0]} is missing')
    if not is_vit(weights):
        raise DataError('these weights are those of a KAT already')


def vit_to_kat(
    weights: dict[str, Tensor], fit: ActivationFit, num_groups: int = 8
) -> dict[str, Tensor]:
    """Returns the weights of a KAT, given those of a ViT in timm's layout.

    act1 of each GR-KAN layer is the identity, act2 the rational fitted to the activation.

    Raises:
        DataError: as `check_vit`.
    """
    check_vit(weights)
    m, n = len(fit.numerator) - 1, len(fit.denominator)
    coefficients = {
        'act1': ([0.0, 1.0] + [0.0] * (m - 1), [0.0] * n),
        'act2': (fit.numerator, fit.denominator),
    }
    result = dict(weights)
    depth = 1 + max(int(key.split('.')[1]) for key in weights if key.startswith('blocks.'))
    for i in range(depth):
        for act, (numerator, denominator) in coefficients.items():
            path = f'blocks.{i}.mlp.{act}'
            result[f'{path}.weight_numerator'] = torch.tensor([numerator])
            result[f'{path}.weight_denominator'] = torch.tensor([denominator] * num_groups)
    return result


def activation_of(weights: dict[str, Tensor]) -> str:
    """Guesses the activation of a ViT in timm's layout: OpenAI's for CLIP, otherwise GELU."""
    return 'quick_gelu' if 'norm_pre.weight' in weights else 'gelu'


def activation_fit(name: str) -> ActivationFit:
    """Returns the rational that takes the place of an activation, fitted on [-6, 6].

    Raises:
        ConfigError: for an activation that has none.
    """
    if name not in FITS:
        raise ConfigError(f'unknown activation {name!r} of a ViT; known: {", ".join(FITS)}')
    return FITS[name]


def resample_patches(weights: dict[str, Tensor], size: Sequence[int]) -> bool:
    """Resamples the patch projection to (h, w) pixels, as FlexiViT does (arXiv 2212.08013).

    Returns:
        Whether it had another size.

    Raises:
        DataError: where timm, which does it, is not installed.
    """
    key = 'patch_embed.proj.weight'
    old = tuple(weights[key].shape[2:])
    if old == tuple(size):
        return False
    try:
        from timm.layers import resample_patch_embed
    except ModuleNotFoundError as error:
        raise DataError(
            f'{key}: patches of {old} pixels cannot be resampled to {tuple(size)} without timm: '
            'pip install timm'
        ) from error
    weights[key] = resample_patch_embed(weights[key].float(), list(size))
    return True
