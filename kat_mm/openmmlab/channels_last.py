"""Convolutions with the channels last in memory, as a GPU's matrix units take them."""

import torch
from torch import nn


def put_channels_last(module: nn.Module) -> None:
    """Has the convolutions of a module give maps with the channels last, where there is a GPU.

    Their weights lie so in memory, from the start: DistributedDataParallel lays its buckets out by
    the weights that it is given. Values, names and shapes stay.
    """
    if torch.cuda.is_available():
        module.to(memory_format=torch.channels_last)


def channels_last(maps):
    """Returns feature maps on a GPU with the channels last in memory, all else as it is."""
    if torch.is_tensor(maps) or not maps[0].is_cuda:
        return maps
    return [x.contiguous(memory_format=torch.channels_last) for x in maps]
