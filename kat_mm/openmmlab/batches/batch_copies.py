"""A batch's way to the GPU: one asynchronous copy for its small tensors, images side by side."""

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

LARGE = 2**16  # bytes


def to_device(data, device: torch.device):
    """Returns data with its tensors on a device, without waiting for a GPU.

    Large tensors that are pinned go by themselves, all others in one piece, which is pinned for it:
    a copy of pageable memory has the host wait, and a batch of a detector has dozens of small ones.

    Args:
        data: tensors, and mmengine's data elements and mmdet's boxes with tensors, in lists, tuples
            and dicts. All else stays as it is.
        device: where to have them.
    """
    if device.type != 'cuda':
        return map_tensors(data, lambda tensor: tensor.to(device))
    joined = []

    def collect(tensor: Tensor) -> None:
        if not tensor.is_cuda and (tensor.nbytes < LARGE or not tensor.is_pinned()):
            joined.append(tensor)

    _visit(data, collect)
    copies = dict(zip(map(id, joined), _copied(joined, device), strict=True))

    def copied(tensor: Tensor) -> Tensor:
        found = copies.get(id(tensor))
        return tensor.to(device, non_blocking=True) if found is None else found

    return map_tensors(data, copied)


def _copied(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copies tensors by one pinned buffer, in which those of a dtype lie side by side."""
    of_dtype = defaultdict(list)
    for number, tensor in enumerate(tensors):
        of_dtype[tensor.dtype].append(number)
    # The wider first, so that each dtype begins where its elements may lie.
    dtypes = sorted(of_dtype, key=lambda dtype: -dtype.itemsize)
    ends = accumulate(sum(tensors[i].nbytes for i in of_dtype[dtype]) for dtype in dtypes)
    places = [slice(*span) for span in pairwise([0, *ends])]
    if not places:
        return []
    is_pinned = device.type == 'cuda'
    pinned = torch.empty(places[-1].stop, dtype=torch.uint8, pin_memory=is_pinned)
    # By numpy: torch spreads copies over all cores, which are the loader's workers'.
    parts = [_bytes(tensors[i]) for dtype in dtypes for i in of_dtype[dtype]]
    np.concatenate(parts, out=pinned.numpy())
    there = pinned.to(device, non_blocking=True)
    copies = [None] * len(tensors)
    for dtype, place in zip(dtypes, places, strict=True):
        numbers = of_dtype[dtype]
        parts = there[place].view(dtype).split([tensors[i].numel() for i in numbers])
        for i, part in zip(numbers, parts, strict=True):
            # As .data, it is no view: what changes one in place leaves the others as autograd
            # knows them.
            copies[i] = part.data.view(tensors[i].shape)
    return copies


def _bytes(tensor: Tensor) -> np.ndarray:
    # Expanded numbers are contiguous, with a stride of 0.
    return (
        tensor.detach().contiguous().as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy()
    )


def map_tensors(data, function: Callable[[Tensor], Tensor]):
    """Returns data of the same structure with other tensors."""
    if torch.is_tensor(data):
        return function(data)
    if isinstance(data, BaseDataElement):
        return _element(data, function)
    if torch.is_tensor(getattr(data, 'tensor', None)):  # mmdet's boxes
        return type(data)(function(data.tensor), clone=False)
    if isinstance(data, Mapping):
        return {key: map_tensors(value, function) for key, value in data.items()}
    if isinstance(data, tuple) and hasattr(data, '_fields'):
        return type(data)(*(map_tensors(value, function) for value in data))
    if isinstance(data, list | tuple):
        return type(data)(map_tensors(value, function) for value in data)
    return data


def _element(data: BaseDataElement, function: Callable[[Tensor], Tensor]) -> BaseDataElement:
    """Returns a data element with other tensors and the same meta information.

    mmengine's own `new` copies that information deeply, which takes longer than all else here.
    """
    result = copy.copy(data)
    own = vars(result)
    own.update(_metainfo_fields={*data._metainfo_fields}, _data_fields={*data._data_fields})
    for key in data._data_fields & own.keys():
        own[key] = map_tensors(own[key], function)
    return result


def _visit(data, function: Callable[[Tensor], None]) -> None:
    """Calls a function with each tensor that `map_tensors` finds."""
    if torch.is_tensor(data):
        function(data)
    elif torch.is_tensor(getattr(data, 'tensor', None)):
        function(data.tensor)
    elif isinstance(data, list | tuple):
        for value in data:
            _visit(value, function)
    elif isinstance(data, Mapping | BaseDataElement):
        for value in data.values():
            _visit(value, function)


def stack_images(
    images: Sequence[Tensor],
    size: tuple[int, int],
    pad_value: float,
    mean: Tensor | None,
    std: Tensor | None,
    flip_channels: bool,
) -> Tensor:
    """Normalises images and pads them below and to the right, in one tensor.

    Args:
        images: each [C, h, w], of any dtype.
        size: height and width to pad to, no smaller than those of any image.
        pad_value: what is padded with, after normalising.
        mean: [C or 1, 1, 1] in fp32, or None to leave the values as they are. An image of one
            channel is repeated for a mean of more.
        std: as mean.
        flip_channels: the other order of the channels, which mean and std are of.

    Returns:
        fp32 [images, C, *size].
    """
    if all(tuple(image.shape[1:]) == size for image in images):
        stacked = torch.stack(list(images))
        if flip_channels:
            stacked = stacked.flip(1)
        stacked = _widened(stacked)
        return (stacked - mean).div_(std) if mean is not None else stacked.float()
    first = images[0]
    channels = first.shape[0] if mean is None else max(first.shape[0], len(mean))
    batch = torch.full(
        (len(images), channels, *size), pad_value, dtype=torch.float32, device=first.device
    )
    for image, place in zip(images, batch, strict=True):
        place = place[:, : image.shape[1], : image.shape[2]]
        if flip_channels:
            image = image.flip(0)
        if mean is None:
            place.copy_(image)
        else:
            torch.sub(_widened(image), mean, out=place).div_(std)
    return batch


def _widened(image: Tensor) -> Tensor:
    """Returns what arithmetic with fp32 computes in fp32."""
    return image.float() if image.is_floating_point() else image
