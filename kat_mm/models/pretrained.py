"""Loads weights into the backbone: all of them, or an error; what has no place is listed."""

import logging
from collections.abc import Iterable

from mmengine.logging import print_log
from torch import nn

from ..checkpoint import read_checkpoint, to_kat_keys, weights_of
from ..errors import DataError

# What a classifier or a pretraining task has besides the backbone.
UNUSED = ('head', 'head_dist', 'fc_norm', 'dist_token', 'mask_token', 'cls_token', 'norm')
# What dense prediction adds to a classifier, and is drawn anew.
ADDED = ('pyramid', 'rel_pos')
# Shapes that the model fits to its own.
FITTED = ('pos_embed',)


def load_pretrained(model: nn.Module, source: str, prefix: str | None = None) -> None:
    """Loads weights of a KAT or ViT into the backbone `model`, and logs which were not used.

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
    weights = to_kat_keys(weights)
    own = model.state_dict()
    unused = [key for key in weights if key not in own]
    missing = [key for key in own if key not in weights and not _is_part(key, ADDED)]
    misfits = [
        f'{key}: the checkpoint has {tuple(weights[key].shape)}, the model {tuple(own[key].shape)}'
        for key in own.keys() & weights.keys() - set(FITTED)
        if weights[key].shape != own[key].shape
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


def _is_part(key: str, parts: Iterable[str]) -> bool:
    return key.split('.')[0] in parts or any(f'.{part}' in key for part in parts if part in ADDED)


def _few(items: list[str], count: int = 3) -> str:
    more = f', and {len(items) - count} more' if len(items) > count else ''
    return '; '.join(items[:count]) + more
