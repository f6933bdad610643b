"""Checks arguments of the backbone and brings them into one form."""

import logging
from collections.abc import Sequence

from mmengine.logging import print_log

from ..errors import ConfigError

# Weights of other backbones, by the names that configs of OpenMMLab call them: KAT's are in none.
MODEL_ZOOS = (
    'open-mmlab://',
    'openmmlab://',
    'mmcls://',
    'mmpretrain://',
    'modelzoo://',
    'torchvision://',
    'https://download.openmmlab.com/',
    'https://download.pytorch.org/',
)


def patch_grid(img_size: int | Sequence[int], patch_size: int) -> tuple[int, int]:
    """Returns how many patches an image has along each side."""
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if min(height, width, patch_size) < 1:
        raise ConfigError(
            f'img_size and patch_size must be positive, got {img_size} and {patch_size}'
        )
    return -(-height // patch_size), -(-width // patch_size)


def sorted_indices(
    name: str, indices: int | Sequence[int] | None, count: int, of: str, default: Sequence[int] = ()
) -> tuple[int, ...]:
    """Returns indices in ascending order, with negative ones counted from the end."""
    if indices is None:
        indices = default
    indices = (indices,) if isinstance(indices, int) else tuple(indices)
    positive = tuple(sorted(i + count if i < 0 else i for i in indices))
    if any(not 0 <= i < count for i in positive) or len(set(positive)) < len(positive):
        raise ConfigError(
            f'{name}={indices} must be different indices of the {count} {of}: 0 to {count - 1}, '
            f'or -{count} to -1'
        )
    if not positive and default:
        raise ConfigError(f'{name} is empty; name at least one of the {count} {of}')
    return positive


def check_pyramid(
    channels: Sequence[int] | None, strides: Sequence[int], default: Sequence[int]
) -> None:
    """Checks that each level of the pyramid has both channels and a stride."""
    if channels is None:
        if tuple(strides) != tuple(default):
            raise ConfigError(
                f'pyramid_strides={strides} needs pyramid, the channels of these levels'
            )
    elif not 0 < len(channels) == len(strides):
        raise ConfigError(
            f'pyramid={channels} has {len(channels)} levels and pyramid_strides={strides} has '
            f'{len(strides)}: give each level its channels and its stride in pixels'
        )


def choose(name: str, value: str, known: dict):
    """Returns the entry of `known` that a config names."""
    if value not in known:
        raise ConfigError(f'unknown {name} {value!r}; known: {", ".join(known)}')
    return known[value]


def loads_pretrained(init_cfg: dict | list[dict] | None) -> bool:
    """Tells whether init_weights will load a checkpoint."""
    configs = [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []
    return any(config.get('type') in ('Pretrained', 'PretrainedInit') for config in configs)


def pretrained_init(
    pretrained: str | None, init_cfg: dict | list[dict] | None
) -> dict | list[dict] | None:
    """Returns the init_cfg that stands for both arguments; see `KAT`."""
    if pretrained is None:
        return init_cfg
    if not isinstance(pretrained, str):
        raise ConfigError(f'pretrained must be a path, a URL or None, got {pretrained!r}')
    if pretrained.startswith(MODEL_ZOOS):
        print_log(
            f'pretrained={pretrained!r} is ignored: it names weights of another backbone. Weights '
            "of KAT are loaded by backbone.init_cfg=dict(type='Pretrained', checkpoint=...)",
            'current',
            logging.WARNING,
        )
        return init_cfg
    if init_cfg is not None:
        raise ConfigError(
            f'both pretrained={pretrained!r} and init_cfg={init_cfg} are given: leave one out'
        )
    return {'type': 'Pretrained', 'checkpoint': pretrained}
