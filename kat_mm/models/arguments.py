"""Checks arguments of the network and brings them into one form."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from ..arithmetic import ceil_div
from ..checks import check_int, check_ints, check_probability
from ..errors import ConfigError
from ..registry import PYRAMIDS

STRIDES = (4, 8, 16, 32)
# Where arguments of earlier versions have gone.
MOVED = {
    'patch_size': 'patch={0!r}, or patch=dict(size={0!r})',
    'in_channels': 'patch=dict(in_channels={0!r})',
    'act_init': "ffn=dict(type='gr_kan', act_init={0!r})",
    'num_groups': "ffn=dict(type='gr_kan', activation=dict(type='rational', num_groups={0!r}))",
    'window_size': "attention=dict(type='softmax', window_size={0!r})",
    'global_blocks': "attention=dict(type='softmax', window_size=..., global_blocks={0!r})",
    'rel_pos': "attention=dict(type='softmax', rel_pos={0!r})",
    'qkv_bias': "attention=dict(type='softmax', qkv_bias={0!r})",
    'mimetic': "attention=dict(type='softmax', mimetic={0!r})",
    'pyramid_strides': 'pyramid=dict(channels=..., strides={0!r})',
    'cls_token': "arch=dict(type='small', cls_token={0!r})",
    'reg_tokens': "arch=dict(type='small', reg_tokens={0!r})",
    'pre_norm': "arch=dict(type='small', pre_norm={0!r})",
    'final_norm': "arch=dict(type='small', final_norm={0!r})",
    'layer_scale': "arch=dict(type='small', layer_scale={0!r})",
    'drop_rate': 'patch=dict(drop={0!r}), attention=dict(drop={0!r}), ffn=dict(drop={0!r})',
}


@dataclass(frozen=True)
class Patch:
    """What `patch` of a network says.

    Attributes:
        size: side of a patch in pixels.
        in_channels: channels of the images.
        drop: dropout probability of the embedded tokens.
    """

    size: int = 16
    in_channels: int = 3
    drop: float = 0.0

    def __post_init__(self):
        check_int('patch.size', self.size)
        check_int('patch.in_channels', self.in_channels)
        check_probability('patch.drop', self.drop)


def read_patch(patch: int | dict) -> Patch:
    """Returns what `patch` says: the side of a patch, or a dict of the attributes of `Patch`."""
    options = dict(patch) if isinstance(patch, dict) else {'size': patch}
    known = [field.name for field in fields(Patch)]
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(f'patch has no {", ".join(unknown)}; it has {", ".join(known)}')
    return Patch(**options)


def read_pyramid(pyramid: Sequence[int] | dict) -> tuple[dict, tuple[int, ...], tuple[int, ...]]:
    """Returns a pyramid's config without its levels, and the levels' channels and strides.

    Raises:
        ConfigError: unless each level has both.
    """
    config = PYRAMIDS.config(pyramid if isinstance(pyramid, dict) else {'channels': pyramid})
    channels = check_ints('pyramid.channels', config.pop('channels', ()))
    strides = check_ints('pyramid.strides', config.pop('strides', STRIDES))
    if not 0 < len(channels) == len(strides):
        raise ConfigError(
            f'pyramid.channels={channels} has {len(channels)} levels and pyramid.strides={strides} '
            f'has {len(strides)}: give each level its channels and its stride in pixels'
        )
    return config, channels, strides


def patch_grid(img_size: int | Sequence[int], patch_size: int) -> tuple[int, int]:
    """Returns how many patches an image has along each side."""
    sides = check_ints('img_size', img_size if isinstance(img_size, Iterable) else (img_size,) * 2)
    if len(sides) != 2:
        raise ConfigError(f'img_size={img_size} must be one number of pixels or (height, width)')
    if min(sides) < patch_size:
        raise ConfigError(
            f'img_size={img_size} is smaller than a patch, patch.size={patch_size}: choose '
            'a larger img_size or a smaller patch'
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
            f'patch.size={patch_size}: enlarge them or choose a smaller patch'
        )
    h, w = ceil_div(height, patch_size), ceil_div(width, patch_size)
    if h < window_size and w < window_size:
        raise ConfigError(
            f'window_size={window_size} is larger than the map of images of {height} x {width} '
            f'pixels, which has {h} x {w} patches: choose a smaller window, or 0 for global '
            'attention'
        )


def refuse_moved_arguments(arguments: dict) -> None:
    """Raises an error for arguments that KAT does not take, with the new place of former ones."""
    for name, value in arguments.items():
        if name in MOVED:
            raise ConfigError(f'KAT: {name}={value!r} is now {MOVED[name].format(value)}')
        raise ConfigError(f'KAT takes no argument {name}')
