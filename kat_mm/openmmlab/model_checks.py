"""Checks of a built model that need no data, so that they come before training."""

import logging
from collections.abc import Sequence

import torch
from mmengine.logging import print_log
from mmengine.model import BaseDataPreprocessor
from torch import nn

from ..errors import ConfigError, UserError, one_line
from ..models.protocol import Backbone
from ..modes import evaluating


def check_model(model: nn.Module) -> None:
    """Checks that the backbone takes the images, and that what follows takes its maps.

    Sizes of images are known where the data preprocessor makes all of one size. Backbones that do
    not have the members of `kat_mm.models.protocol.Backbone` are not checked.

    Raises:
        ConfigError: names what does not fit, with the numbers on both sides.
    """
    modules = list(model.modules())
    sizes = [getattr(m, 'size', None) for m in modules if isinstance(m, BaseDataPreprocessor)]
    for owner in modules:
        backbone = getattr(owner, 'backbone', None)
        if not isinstance(backbone, Backbone):
            continue
        for size in filter(None, sizes):
            backbone.check_image_size(*size)
        if isinstance(neck := getattr(owner, 'neck', None), nn.Module):
            _check_neck(neck, backbone)
        else:
            for name in ('decode_head', 'auxiliary_head'):
                head = getattr(owner, name, None)
                for part in head if isinstance(head, nn.ModuleList) else [head]:
                    _check_head(name, part, backbone.out_channels)


@torch.no_grad()
def _check_neck(neck: nn.Module, backbone: Backbone) -> None:
    """Runs the neck on small maps like the backbone's."""
    like = next(neck.parameters(), torch.empty(0))
    image = 8 * max(backbone.out_strides)
    maps = tuple(
        like.new_zeros(1, channels, image // stride, image // stride)
        for channels, stride in zip(backbone.out_channels, backbone.out_strides, strict=True)
    )
    try:
        with evaluating(neck):
            neck(maps)
    except TypeError:  # takes more than maps: cannot be known here
        return
    except (UserError, NotImplementedError):  # of an op that this environment lacks
        raise
    except (AssertionError, IndexError, RuntimeError) as error:
        first = neck[0] if isinstance(neck, nn.Sequential) else neck
        takes = getattr(first, 'in_channels', None)
        raise ConfigError(
            f'the neck {type(first).__name__}{f" with {takes} in_channels" if takes else ""} '
            f'cannot take the maps of the backbone, of {backbone.out_channels} channels at strides '
            f'{backbone.out_strides} ({one_line(error)}): correct the neck, or pyramid, '
            'out_indices or arch of the backbone'
        ) from error


def check_classes(model: nn.Module, classes: Sequence[str] | None) -> None:
    """Checks that the heads have an output for each class; more than that are worth a warning.

    Raises:
        ConfigError: names the head, its number of classes and that of the data.
    """
    if classes is None:
        return
    for name, head in model.named_modules():
        known = getattr(head, 'num_classes', None)
        kind = type(head).__name__
        # A region proposal network tells objects from the rest, STDCHead edges.
        other = 'rpn_head' in name.split('.') or kind in ('FusedSemanticHead', 'STDCHead')
        if not kind.endswith('Head') or other or not isinstance(known, int):
            continue
        if getattr(head, 'class_agnostic', False) or known == len(classes):
            continue
        message = (
            f'model.{name}: {kind} has num_classes={known}, the data set {len(classes)} classes: '
            f'set --cfg-options model.{name}.num_classes={len(classes)}, in all heads'
        )
        if known < len(classes):
            raise ConfigError(message)
        print_log(message, 'current', logging.WARNING)


def _check_head(name: str, head: nn.Module | None, channels: tuple[int, ...]) -> None:
    """Checks the map or maps that a head of mmseg picks."""
    index, takes = getattr(head, 'in_index', None), getattr(head, 'in_channels', None)
    if index is None or takes is None:
        return
    indices = [index] if isinstance(index, int) else index
    known = all(-len(channels) <= i < len(channels) for i in indices)
    picked = [channels[i] for i in indices] if known else []
    wanted = [takes] if isinstance(takes, int) else list(takes)
    if getattr(head, 'input_transform', None) == 'resize_concat':
        picked = [sum(picked)]
    if picked != wanted:
        raise ConfigError(
            f'{name}: in_index={index} with {takes} in_channels does not fit the maps of the '
            f'backbone, of {channels} channels: correct it, or pyramid, out_indices or arch of '
            'the backbone'
        )
