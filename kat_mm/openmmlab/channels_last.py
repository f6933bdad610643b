"""Convolutions with the channels last in memory, as a GPU's matrix units take them."""

from collections.abc import Callable

import torch
from torch import nn


def has_gpu() -> bool:
    """Tells whether convolutions may run on one."""
    return torch.cuda.is_available()


def put_channels_last(*modules: nn.Module) -> None:
    """Has the convolutions of modules give maps with the channels last, where there is a GPU.

    Their weights lie so in memory, from the start: DistributedDataParallel lays its buckets out by
    the weights that it is given. Values, names and shapes stay.
    """
    if has_gpu():
        for module in modules:
            module.to(memory_format=torch.channels_last)


def init_in_order(init: Callable[[], None], *modules: nn.Module) -> None:
    """Calls `init`, which draws the weights of modules, and puts their channels last again.

    Random numbers fill a weight in the order of its memory: one seed gives the same weights
    whatever the layout that they get.
    """
    for module in modules:
        module.to(memory_format=torch.contiguous_format)
    init()
    put_channels_last(*modules)


def channels_last(maps):
    """Returns feature maps on a GPU with the channels last in memory, all else as it is."""
    if torch.is_tensor(maps) or not maps[0].is_cuda:
        return maps
    return [x.contiguous(memory_format=torch.channels_last) for x in maps]
