"""State dicts of KAT and of ViTs in the one key layout of this package, whatever a file held.

The layout is that of the published KAT models: `patch_embed.proj.weight`, `cls_token`, `pos_embed`,
`blocks.0.attn.qkv.weight`, `blocks.0.mlp.act1.weight_numerator` [1, 6],
`blocks.0.mlp.act1.weight_denominator` [8, 4], `blocks.0.mlp.fc1.weight`, ..., `norm.weight`,
`head.weight`, which but for the activations is timm's layout of a ViT.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import DataError

# Where weights lie in files of training programs; averaged weights come first, as timm has it.
WRAPPERS = ('state_dict_ema', 'model_ema', 'teacher', 'state_dict', 'model')
# What training programs put in front of all keys of a backbone.
PREFIXES = ('module.', '_orig_mod.', 'backbone.', 'model.')
RENAMED = {
    'numerator_v': 'weight_numerator',  # FlashKAT's names
    'denominator_v': 'weight_denominator',
    'mlp.fc1.act1': 'mlp.act1',  # those of timm's ViT after to_kat
    'mlp.fc1.layer': 'mlp.fc1',
    'mlp.act': 'mlp.act2',
}


def weights_of(content: object, source: str = 'the checkpoint') -> dict[str, Tensor]:
    """Returns the state dict in what a file held.

    Raises:
        DataError: if there is none.
    """
    entries, _ = _unwrap(content)
    weights = {key: value for key, value in entries.items() if torch.is_tensor(value)}
    if not weights:
        raise DataError(f'{source} holds no weights: it must be a state dict or have one')
    return weights


def to_kat_keys(content: object, source: str = 'the checkpoint') -> dict[str, Tensor]:
    """Returns the weights of a KAT or a ViT with the keys of this package; other keys stay.

    Prefixes that all keys share, or that the backbone has in a detector, are dropped; then only
    the backbone's keys are taken, and those of coefficients become the published ones.

    Raises:
        DataError: if there is no state dict in the content.
    """
    weights = weights_of(content, source)
    while True:
        prefix = next(
            (p for p in PREFIXES if any(key.startswith(p + 'patch_embed.') for key in weights)),
            None,
        )
        prefix = prefix or next((p for p in PREFIXES if all(k.startswith(p) for k in weights)), '')
        if not prefix:
            break
        weights = {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}
    return rename_coefficients(weights)


def left_out(content: object, taken: Mapping[str, Tensor]) -> list[str]:
    """Returns what else a file held than the weights taken from it, which may have other keys.

    These are keys of its state dict, and the names of other state dicts.
    """
    entries, others = _unwrap(content)
    used = {id(value) for value in taken.values()}
    return others + [key for key, value in entries.items() if id(value) not in used]


def _unwrap(content: object) -> tuple[Mapping, list[str]]:
    """Returns the innermost entries of what a file held, and the names of those of other models."""
    others = []
    while isinstance(content, Mapping):
        found = [w for w in WRAPPERS if isinstance(content.get(w), Mapping) and content[w]]
        if not found:
            return content, others
        others += found[1:]
        content = content[found[0]]
    return {}, others


def rename_coefficients(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives coefficients of FlashKAT, and of timm's ViT after `kat_mm.to_kat`, our keys."""
    names = '|'.join(map(re.escape, RENAMED))
    pattern = re.compile(rf'(?<=\.)({names})(?=\.|$)')
    return {pattern.sub(lambda name: RENAMED[name[0]], k): v for k, v in weights.items()}
