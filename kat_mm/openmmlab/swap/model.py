"""Puts a backbone into a model, and adapts what takes its maps and what gives it images."""

from collections.abc import Sequence
from itertools import pairwise

from ...models.arguments import STRIDES
from ...models.protocol import Backbone
from ...models.sizes import read_arch
from .edits import Edits
from .probe import CannotSwap, Maps, build, kind

# What KAT's published weights, as most, were trained with: RGB of ImageNet.
IMAGES = {
    'mean': [123.675, 116.28, 103.53],
    'std': [58.395, 57.12, 57.375],
    'bgr_to_rgb': True,
}
DETECTION = {'attention': {'type': 'softmax', 'window_size': 14}, 'drop_path_rate': 0.1}
SEGMENTATION = {'drop_path_rate': 0.1}
HEADS = ('decode_head', 'auxiliary_head')


def find_backbone(edits: Edits) -> str:
    """Returns the dotted name of the model, or of the part of it, that has the backbone."""
    model = edits.get('model')
    if not isinstance(model, dict):
        raise CannotSwap('the config has no model')
    if 'teacher_ckpt' in model:
        raise CannotSwap(
            f'{kind(model)} learns from a trained teacher of the same kind as its old backbone'
        )
    for place in ('model', 'model.detector'):
        backbone = edits.get(f'{place}.backbone')
        if isinstance(backbone, dict):
            if kind(backbone) == 'KAT':
                raise CannotSwap(f'{place}.backbone is KAT already')
            return place
    raise CannotSwap(f'the config has no model.backbone: {kind(model)} holds it in another way')


def put_kat(edits: Edits, place: str, maps: Maps, arch: str | dict, checkpoint: str | None) -> None:
    """Replaces the backbone by one that gives maps of the same channels and strides.

    A plain transformer gives way to plain maps, of KAT's own width; what takes them follows suit.

    Raises:
        CannotSwap: if KAT cannot give such maps.
    """
    old = edits.get(f'{place}.backbone')
    sizes = read_arch(arch)
    new = {'type': 'KAT', 'arch': arch}
    if checkpoint is not None:
        new['init_cfg'] = {'type': 'Pretrained', 'checkpoint': checkpoint}
    new |= DETECTION if edits.get('default_scope') == 'mmdet' else SEGMENTATION
    name = f'{place}.backbone'
    if _is_plain(old, maps):
        indices = _same_depths(old, len(maps.strides), sizes.num_layers)
        if indices != (sizes.num_layers - 1,):
            new['out_indices'] = indices
        edits.set(name, new, f'maps at stride 16, as those of {kind(old)}')
        _fit_channels(edits, place, maps.channels, (sizes.embed_dims,) * len(maps.channels))
        return
    _check_levels(kind(old), maps)
    channels, strides = _drop_unused_levels(edits, place, maps)
    is_usual = strides == STRIDES
    new['pyramid'] = channels if is_usual else {'channels': channels, 'strides': strides}
    edits.set(name, new, f'maps of the channels and strides of those of {kind(old)}')


def put_backbone(edits: Edits, place: str, maps: Maps, new: dict, scope: str | None) -> None:
    """Replaces the backbone by another than KAT, and adapts what takes its maps.

    Args:
        edits: the config.
        place: dotted name of what has the backbone.
        maps: those of the old backbone.
        new: config of a backbone with the members of `kat_mm.models.protocol.Backbone`.
        scope: the registry's scope.

    Raises:
        CannotSwap: if it has not, or its maps have other strides than the old ones.
    """
    name = kind(new)

    def maps_of(backbone) -> Maps:
        if not isinstance(backbone, Backbone):
            raise CannotSwap(
                f'{name} does not have all members of kat_mm.models.protocol.Backbone, by which a '
                'backbone tells what its maps are like'
            )
        return Maps(tuple(backbone.out_channels), tuple(backbone.out_strides))

    own = build(new, scope, maps_of)
    if own.strides != maps.strides:
        raise CannotSwap(
            f'{name} gives maps at strides {own.strides}, '
            f'{kind(edits.get(f"{place}.backbone"))} at {maps.strides}'
        )
    edits.set(f'{place}.backbone', new, 'maps of the strides of those of the old backbone')
    _fit_channels(edits, place, maps.channels, own.channels)


def fit_images(edits: Edits, place: str) -> None:
    """Normalises images as KAT's weights expect it."""
    keys = [f'{place}.data_preprocessor', 'model.data_preprocessor', 'data_preprocessor']
    key = next((key for key in keys if isinstance(edits.get(key), dict)), None)
    if key is None:
        raise CannotSwap('the config has no model.data_preprocessor, which normalises the images')
    if isinstance(edits.get(f'{key}.data_preprocessor'), dict):  # of several branches
        key = f'{key}.data_preprocessor'
    if edits.get(f'{key}.pad_value') and edits.get(f'{key}.mean') is None:
        edits.set(f'{key}.pad_value', 0, 'padding follows normalisation')
    for name, value in IMAGES.items():
        edits.set(f'{key}.{name}', value, "images as KAT's weights expect them")


def drop_weights(edits: Edits, place: str) -> None:
    """Drops the weights of the replaced backbone and of whole models that it was a part of."""
    for name in ('model', place):
        if edits.get(f'{name}.pretrained') is not None:
            edits.set(f'{name}.pretrained', None, 'weights of the replaced backbone')
        if 'Pretrained' in kind(edits.get(f'{name}.init_cfg') or {}):
            edits.set(f'{name}.init_cfg', None, 'weights of a model with the replaced backbone')
    if edits.get('load_from'):
        edits.set('load_from', None, 'weights of a model with the replaced backbone')


def _is_plain(old: dict, maps: Maps) -> bool:
    one_width = len(set(maps.channels)) == 1 and set(maps.strides) == {16}
    return one_width and isinstance(old.get('num_layers'), int)


def _same_depths(old: dict, count: int, depth: int) -> tuple[int, ...]:
    """Returns the blocks of KAT that lie as deep, relatively, as the old backbone's."""
    old_depth = old['num_layers']
    indices = old.get('out_indices', -1)
    indices = [indices] if isinstance(indices, int) else indices
    scaled = {max(round((i % old_depth + 1) * depth / old_depth), 1) - 1 for i in indices}
    if len(scaled) < count:
        scaled = range(depth - count, depth)
    return tuple(sorted(scaled))


def _check_levels(name: str, maps: Maps) -> None:
    channels, strides = maps
    if not set(strides) <= set(STRIDES):
        raise CannotSwap(
            f'the backbone {name} gives maps at strides {strides}; KAT gives {STRIDES}'
        )
    repeats = len(set(strides)) < len(strides)
    wider = all(a < b for a, b in pairwise(channels))
    if list(strides) != sorted(strides) or (repeats and not wider):
        raise CannotSwap(
            f'the backbone {name} has branches of its own: its maps of {channels} channels at '
            f'strides {strides} are not the stages of one pyramid'
        )


def _drop_unused_levels(edits: Edits, place: str, maps: Maps) -> Maps:
    """Leaves out the levels below an FPN's start_level, which would be computed for nothing."""
    key = f'{place}.neck'
    if isinstance(edits.get(key), Sequence):
        key = f'{key}.0'
    neck = edits.get(key) or {}
    start = neck.get('start_level', 0)
    if kind(neck) != 'FPN' or not start or neck.get('end_level', -1) != -1:
        return maps
    reason = 'the neck takes no finer level, so that KAT computes none'
    edits.set(f'{key}.in_channels', list(maps.channels[start:]), reason)
    edits.set(f'{key}.start_level', 0, reason)
    return Maps(maps.channels[start:], maps.strides[start:])


def _fit_channels(edits: Edits, place: str, old: tuple[int, ...], new: tuple[int, ...]) -> None:
    """Gives the channels of the new maps to what takes them: the neck, or else the heads."""
    renamed = dict(zip(old, new, strict=True))
    reason = "the backbone's number of channels"
    neck = edits.get(f'{place}.neck')
    first = neck[0] if isinstance(neck, Sequence) and neck else neck
    parts = ['neck'] if neck else []
    if not neck or kind(first) == 'Feature2Pyramid':  # which keeps the number of channels
        parts += HEADS
    for part in parts:
        for key, node in edits.dicts(f'{place}.{part}'):
            for name in ('in_channels', 'in_dims', 'embed_dim'):
                value = node.get(name)
                if isinstance(value, Sequence) and any(channels in old for channels in value):
                    is_all = tuple(value) == old
                    value = list(new) if is_all else [renamed.get(c, c) for c in value]
                    edits.set(f'{key}.{name}', value, reason)
                elif isinstance(value, int) and value in renamed:
                    index = node.get('in_index')
                    is_one = isinstance(index, int) and -len(new) <= index < len(new)
                    edits.set(f'{key}.{name}', new[index] if is_one else renamed[value], reason)
            if node.get('num_convs') == 0 and node.get('channels') in renamed:
                value = renamed[node['channels']]
                edits.set(
                    f'{key}.channels', value, 'a head without convolutions keeps the channels'
                )
