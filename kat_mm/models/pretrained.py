"""Weights for the network: all of them fit, or it is an error; what has no place is listed."""

import logging
import re

import torch
from torch import Tensor, nn

from ..errors import DataError
from ..rational import GroupRational, published_state_dict
from ..weights.activation_fits import INTERVAL
from ..weights.layout import left_out, to_kat_keys, weights_of
from ..weights.reading import read_checkpoint
from ..weights.vit import (
    activation_fit,
    activation_of,
    check_parts,
    is_vit,
    resample_patches,
    to_timm_keys,
    vision_part,
    vit_to_kat,
)
from .pos_embed import adapt_pos_embed
from .protocol import Backbone

_logger = logging.getLogger(__name__)

# What a classifier has besides the backbone, and the class token, which is for the user to choose.
UNUSED = re.compile(r'(head|norm|fc_norm|cls_token)\b')


def load_pretrained(
    model: Backbone, source: str, prefix: str | None = None, activation: str | None = None
) -> None:
    """Loads weights into a backbone, after its `adapt_checkpoint` has made them fit.

    Args:
        model: the backbone.
        source: a file, a URL or hf-hub:owner/name, as in `read_checkpoint`.
        prefix: takes the keys behind it alone, such as 'backbone.'.
        activation: that of a ViT, 'gelu' or 'quick_gelu'; by default GELU, and for CLIP OpenAI's
            own, which others who train CLIP need not have.

    Raises:
        DataError: for a source that cannot be read, and for weights that do not fit, of which it
            names the first few; the model is then unchanged.
    """
    name = f'checkpoint {source}'
    content = read_checkpoint(source)
    if prefix:
        start = prefix.rstrip('.') + '.'
        weights = weights_of(content, name)
        content = {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}
        if not content:
            raise DataError(f'{name} has no keys that start with {start!r}')
    options = {} if activation is None else {'activation': activation}
    model.load_state_dict(model.adapt_checkpoint(content, name, **options), strict=False)


def adapt_weights(
    model: nn.Module, content: object, source: str, activation: str | None = None
) -> dict[str, Tensor]:
    """Returns the weights of a KAT or ViT that a file held, with the keys and shapes of `model`.

    Those of a ViT become weights of a KAT that computes the same, up to the error of a fit, by
    `vit_to_kat`. Patches of another size are resampled; position embeddings of another grid the
    model resamples on loading. What is not used, and what the model must draw anew, is logged.

    Args:
        model: a `KAT`.
        content: a state dict, or what contains one.
        source: what messages call it.
        activation: as for `load_pretrained`.

    Raises:
        DataError, ConfigError: as `check_fit`, and if there are no weights.
    """
    taken = vision_part(to_kat_keys(content, source))
    weights = to_timm_keys(taken)
    check_parts(weights)
    act1 = getattr(model.blocks[0].mlp, 'act1', None)
    if is_vit(weights) and isinstance(act1, GroupRational):
        activation = activation or activation_of(weights)
        fit = activation_fit(activation)
        weights = vit_to_kat(weights, fit, act1.num_groups)
        _logger.info(
            '%s is a ViT, made a KAT: act2 is %s, fitted to %.2g on [-%g, %g]',
            *(source, activation, fit.error, INTERVAL, INTERVAL),
        )
    if 'norm_pre.weight' in weights:  # CLIP's patch projection has no bias
        weights.setdefault('patch_embed.proj.bias', torch.zeros(model.embed_dims))
    own = model.state_dict()
    _resample_patches(weights, own['patch_embed.proj.weight'].shape)
    check_fit(model, weights, source)
    drawn = [key for key in own if key not in weights]
    unused = left_out(content, taken) + [key for key in weights if key not in own]
    _logger.info('loaded %d tensors of %s', len(own) - len(drawn), source)
    if drawn:
        _logger.info('not in %s, so drawn anew: %s', source, ', '.join(drawn))
    if unused:
        listed = ', '.join(unused)
        _logger.info('in %s, but not in the backbone, so not used: %s', source, listed)
    # By the class token the model tells which position embeddings belong to a grid.
    return {key: value for key, value in weights.items() if key in own or key == 'cls_token'}


def check_fit(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Checks that weights have the keys and shapes of the network `model`.

    Raises:
        DataError: if not; it names the first keys, and both shapes of what differs in shape.
        ConfigError: for position embeddings that make no grid.
    """
    own, weights = published_state_dict(model), published_state_dict(model, weights)
    problems = [
        f'{key}: the checkpoint has {tuple(weights[key].shape)}, the model {tuple(own[key].shape)}'
        for key in sorted(own.keys() & weights.keys())
        if not _fit(key, weights[key].shape, own[key].shape)
    ]
    surplus = [key for key in weights if key not in own and not UNUSED.match(key)]
    if model.window_size:  # windows have no place for registers
        surplus = [key for key in surplus if key != 'reg_token']
    missing = [key for key in own if key not in weights and not _is_fresh(model, key)]
    problems += [f'the model has no {key}' for key in surplus]
    problems += [f'the checkpoint has no {key}' for key in missing]
    if problems:
        raise DataError(
            f'{source} is of another architecture: {_few(problems)}. Set arch, patch and the '
            'other arguments of the backbone to those of the checkpoint'
        )
    adapt_pos_embed(weights['pos_embed'], 'cls_token' in weights, model.grid, model.num_cls)


def _is_fresh(model: nn.Module, key: str) -> bool:
    """Tells whether a key is of what dense prediction adds to a classifier, and is drawn anew."""
    part, *rest = key.split('.')
    if part == 'blocks' and rest[1] == 'attn':
        return rest[2] in model.blocks[int(rest[0])].attn.fresh
    return part in model.fresh


def _fit(key: str, shape: torch.Size, own: torch.Size) -> bool:
    """Tells whether the model can load a shape; it fits the grid of position embeddings itself."""
    if key == 'pos_embed' and len(shape) == 3:
        return shape[::2] == own[::2]
    return shape == own


def _resample_patches(weights: dict[str, Tensor], own: torch.Size) -> None:
    """Resamples the patch projection to the model's size, unless it is of another architecture."""
    key = 'patch_embed.proj.weight'
    if key not in weights or weights[key].dim() != 4 or weights[key].shape[:2] != own[:2]:
        return
    old = tuple(weights[key].shape[2:])
    if resample_patches(weights, own[2:]):
        _logger.info('%s: resampled from %s to %s pixels', key, old, tuple(own[2:]))


def _few(items: list[str], count: int = 3) -> str:
    more = f', and {len(items) - count} more' if len(items) > count else ''
    return '; '.join(items[:count]) + more
