"""Checks arguments of the backbone and brings them into one form."""

import logging
from collections.abc import Iterable, Sequence

from mmengine.logging import print_log

from ..arithmetic import ceil_div
from ..checks import check_int, check_ints, is_int
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
    check_int('patch_size', patch_size)
    sides = check_ints('img_size', img_size if isinstance(img_size, Iterable) else (img_size,) * 2)
    if len(sides) != 2:
        raise ConfigError(f'img_size={img_size} must be one number of pixels or (height, width)')
    if min(sides) < patch_size:
        raise ConfigError(
            f'img_size={img_size} is smaller than a patch, patch_size={patch_size}: choose '
            'a larger img_size or a smaller patch_size'
        )
    return ceil_div(sides[0], patch_size), ceil_div(sides[1], patch_size)


def check_image_size(height: int, width: int, patch_size: int, window_size: int) -> None:
    """Checks that images of a size in pixels have a patch, and a map that is not below the windows.

    Where it is smaller than a window in one direction alone, windows still cut the other one.

    Raises:
        ConfigError: for images that are smaller.
    """
    if height < patch_size or width < patch_size:
        raise ConfigError(
            f'images of {height} x {width} pixels are smaller than a patch, '
            f'patch_size={patch_size}: enlarge them or choose a smaller patch_size'
        )
    h, w = ceil_div(height, patch_size), ceil_div(width, patch_size)
    if h < window_size and w < window_size:
        raise ConfigError(
            f'window_size={window_size} is larger than the map of images of {height} x {width} '
            f'pixels, which has {h} x {w} patches: choose a smaller window, or 0 for global '
            'attention'
        )


def sorted_indices(
    name: str, indices: int | Sequence[int] | None, count: int, of: str, default: Sequence[int] = ()
) -> tuple[int, ...]:
    """Returns indices in ascending order, with negative ones counted from the end."""
    if indices is None:
        indices = default
    indices = tuple(indices) if isinstance(indices, Iterable) else (indices,)
    known = all(is_int(i) and -count <= i < count for i in indices)
    positive = tuple(sorted(i % count for i in indices)) if known else ()
    if not known or len(set(positive)) < len(positive):
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
    check_ints('pyramid_strides', strides)
    if channels is None:
        if tuple(strides) != tuple(default):
            raise ConfigError(
                f'pyramid_strides={strides} needs pyramid, the channels of these levels'
            )
    elif not 0 < len(check_ints('pyramid', channels)) == len(strides):
        raise ConfigError(
            f'pyramid={channels} has {len(channels)} levels and pyramid_strides={strides} has '
            f'{len(strides)}: give each level its channels and its stride in pixels'
        )


def choose(name: str, value: str, known: dict):
    """Returns the entry of `known` that a config names."""
    if not isinstance(value, str) or value not in known:
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
