"""Turns the weights of a trained ViT into those of a KAT that computes the same."""

import re
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import DataError
from ..rational.fitting import Fit, fit_rational

ACTIVATIONS = {
    'gelu': torch.nn.functional.gelu,
    'quick_gelu': lambda x: x * torch.sigmoid(1.702 * x),  # OpenAI's CLIP
}
INTERVAL = 6.0  # inputs of a trained ViT's activations are rarely farther from zero
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
UNFIT = {  # parts of other architectures, by a pattern of their keys
    r'relative_position_bias|rel_pos_bias': 'relative position biases, as BEiT has',
    r'\.q_norm\.|\.k_norm\.|\.q_bias$': 'norms or separate biases of queries and keys',
    r'\.w12\.|\.w3\.|\.fc1_g\.': 'gated MLPs',
}


def is_vit(weights: dict[str, Tensor]) -> bool:
    """Tells whether weights in timm's layout are of a transformer with plain MLPs."""
    return 'blocks.0.mlp.fc1.weight' in weights and not any('.mlp.act' in key for key in weights)


def vision_part(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of a ViT without what pretraining added.

    That is a decoder, a mask token, or a tower of texts.
    """
    if 'visual.class_embedding' in weights:  # CLIP, with a projection into the space of texts
        start = 'visual.'
        weights = {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}
        weights.pop('proj', None)
    return {
        key: value
        for key, value in weights.items()
        if not key.startswith('decoder') and key != 'mask_token'
    }


def to_timm_keys(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gives the `vision_part` of a ViT of DeiT, MAE, DINO, DINOv2 or CLIP timm's keys."""
    weights = vision_part(weights)
    if 'class_embedding' in weights:
        return _from_clip(weights)
    trained = {
        re.sub(r'\bgamma_([12])$', r'ls\1.gamma', key): value for key, value in weights.items()
    }
    if 'register_tokens' in trained:  # DINOv2's, which have no position, as the class token here
        positions = trained['pos_embed']
        trained['reg_token'] = trained.pop('register_tokens')
        trained['cls_token'] = trained['cls_token'] + positions[:, :1]
        trained['pos_embed'] = positions[:, 1:]
    return trained


def _from_clip(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in weights.items():
        for old, new in CLIP:
            key = key.replace(old, new)
        renamed[key] = value.float()
    renamed['cls_token'] = renamed['cls_token'].view(1, 1, -1)
    renamed['pos_embed'] = renamed['pos_embed'].unsqueeze(0)
    return renamed


@lru_cache
def fit_activation(name: str, order: tuple[int, int] = (5, 4), interval: float = INTERVAL) -> Fit:
    """Computes the rational that takes the place of an activation, fitted on [-interval, interval].

    Raises:
        DataError: for an activation that is not in `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise DataError(f'unknown activation {name!r} of a ViT; known: {", ".join(ACTIVATIONS)}')
    return fit_rational(ACTIVATIONS[name], -interval, interval, order)


def vit_to_kat(
    weights: dict[str, Tensor], activation: str = 'gelu', num_groups: int = 8
) -> dict[str, Tensor]:
    """Returns the weights of a KAT, given those of a ViT in timm's layout.

    act1 of each GR-KAN layer is the identity, act2 the rational fitted to the activation.

    Raises:
        DataError: for weights of an architecture that KAT has no place for.
    """
    for pattern, part in UNFIT.items():
        if key := next((key for key in weights if re.search(pattern, key)), None):
            raise DataError(f'these weights have {part} ({key}), for which KAT has no place')
    if not is_vit(weights):
        raise DataError('these weights are not those of a ViT: blocks.0.mlp.fc1.weight is missing')
    fit = fit_activation(activation)
    order = len(fit.numerator) - 1, len(fit.denominator)
    identity = [0.0, 1.0] + [0.0] * (order[0] - 1), [0.0] * order[1]
    result = dict(weights)
    depth = 1 + max(int(key.split('.')[1]) for key in weights if key.startswith('blocks.'))
    for i in range(depth):
        for act, (a, b) in (('act1', identity), ('act2', (fit.numerator, fit.denominator))):
            path = f'blocks.{i}.mlp.{act}'
            result[f'{path}.weight_numerator'] = torch.tensor([list(a)])
            result[f'{path}.weight_denominator'] = torch.tensor([list(b)] * num_groups)
    return result
