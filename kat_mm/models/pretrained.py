"""Loads weights into the backbone: all of them, or an error; what has no place is listed."""

import logging
from collections.abc import Iterable

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..checkpoint import read_checkpoint, to_kat_keys, weights_of
from ..conversion.vit import INTERVAL, fit_activation, is_vit, to_timm_keys, vit_to_kat
from ..errors import DataError
from .gr_kan import GRKAN

# What a classifier has besides the backbone, and what windowed attention has no place for.
UNUSED = ('head', 'head_dist', 'fc_norm', 'dist_token', 'cls_token', 'reg_token', 'norm')
# What dense prediction adds to a classifier, and is drawn anew.
ADDED = ('pyramid', 'rel_pos')


def load_pretrained(model: nn.Module, source: str, prefix: str | None = None) -> None:
    """Loads weights of a KAT or ViT into the backbone `model`, and logs which were not used.

    Those of a ViT become weights of a KAT that computes the same, up to the error of a fit, by
    `vit_to_kat`. Patches of another size and position embeddings of another grid are resampled.

    Args:
        model: a `KAT`.
        source: a file, a URL or the id of a Hugging Face repository, as in `read_checkpoint`.
        prefix: takes the keys behind it alone, such as 'backbone.'.

    Raises:
        DataError: for a source that cannot be read, and for weights that do not fit, of which it
            names the first few; the model is then unchanged.
    """
    weights = weights_of(read_checkpoint(source), f'checkpoint {source}')
    if prefix:
        start = prefix.rstrip('.') + '.'
        weights = {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}
        if not weights:
            raise DataError(f'checkpoint {source} has no keys that start with {start!r}')
    weights = to_timm_keys(to_kat_keys(weights))
    if is_vit(weights) and isinstance(model.blocks[0].mlp, GRKAN):
        activation = 'quick_gelu' if 'norm_pre.weight' in weights else 'gelu'
        error = fit_activation(activation).error
        weights = vit_to_kat(weights, activation, model.blocks[0].mlp.act1.num_groups)
        message = f'act2 is {activation}, fitted to {error:.2g} on [-{INTERVAL:g}, {INTERVAL:g}]'
        print_log(f'{source} is a ViT, made a KAT: {message}', 'current')
    if 'norm_pre.weight' in weights:  # CLIP's patch projection has no bias
        weights.setdefault('patch_embed.proj.bias', torch.zeros(model.embed_dims))
    own = model.state_dict()
    _resample_patches(weights, own['patch_embed.proj.weight'])
    unused = [key for key in weights if key not in own]
    missing = [key for key in own if key not in weights and not _is_part(key, ADDED)]
    misfits = [
        f'{key}: the checkpoint has {tuple(weights[key].shape)}, the model {tuple(own[key].shape)}'
        for key in own.keys() & weights.keys()
        if not _fit(key, weights[key].shape, own[key].shape)
    ]
    problems = [f'the model has no {key}' for key in unused if not _is_part(key, UNUSED)]
    problems += [f'the checkpoint has no {key}' for key in missing]
    if problems := sorted(misfits) + problems:
        raise DataError(
            f'checkpoint {source} is of another architecture: {_few(problems)}. Set arch, '
            'patch_size and the other arguments of the backbone to those of the checkpoint'
        )
    model.load_state_dict(weights, strict=False)
    drawn = [key for key in own if key not in weights]
    print_log(f'loaded {len(own) - len(drawn)} tensors of {source}', 'current')
    if drawn:
        print_log(f'not in {source}, so drawn anew: {", ".join(drawn)}', 'current')
    if unused:
        message = f'in {source}, but not in the backbone, so not used: {", ".join(unused)}'
        print_log(message, 'current', logging.INFO)


def _fit(key: str, shape: torch.Size, own: torch.Size) -> bool:
    """Tells whether the model can load a shape; it fits the grid of position embeddings itself."""
    if key == 'pos_embed' and len(shape) == 3:
        return shape[::2] == own[::2]
    return shape == own


def _resample_patches(weights: dict[str, Tensor], own: Tensor) -> None:
    """Resamples the patch projection to the model's size, as FlexiViT does (arXiv 2212.08013)."""
    key = 'patch_embed.proj.weight'
    weight = weights.get(key)
    if weight is None or weight.dim() != 4 or weight.shape[2:] == own.shape[2:]:
        return
    if weight.shape[:2] != own.shape[:2]:
        return  # of another architecture, which is reported
    try:
        from timm.layers import resample_patch_embed
    except ModuleNotFoundError as error:
        raise DataError(
            f'{key}: patches of {tuple(weight.shape[2:])} pixels cannot be resampled to '
            f'{tuple(own.shape[2:])} without timm: pip install timm'
        ) from error
    weights[key] = resample_patch_embed(weight.float(), list(own.shape[2:]))
    message = f'resampled from {tuple(weight.shape[2:])} to {tuple(own.shape[2:])} pixels'
    print_log(f'{key}: {message}', 'current')


def _is_part(key: str, parts: Iterable[str]) -> bool:
    return key.split('.')[0] in parts or any(f'.{part}' in key for part in parts if part in ADDED)


def _few(items: list[str], count: int = 3) -> str:
    more = f', and {len(items) - count} more' if len(items) > count else ''
    return '; '.join(items[:count]) + more
