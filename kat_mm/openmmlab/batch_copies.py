"""A batch's way to the GPU: one asynchronous copy for its small tensors, images side by side."""

from collections.abc import Callable, Mapping, Sequence

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

ALIGNMENT = 16  # bytes


def to_device(data, device: torch.device):
    """Returns data with its tensors on a device, without waiting for a GPU.

    Pinned tensors go by themselves, all others in one piece, which is pinned for it: a copy of
    pageable memory has the host wait, and a batch of a detector has dozens of small tensors.

    Args:
        data: tensors, and mmengine's data elements and mmdet's boxes with tensors, in lists, tuples
            and dicts. All else stays as it is.
        device: where to have them.
    """
    if device.type != 'cuda':
        return map_tensors(data, lambda tensor: tensor.to(device))
    pageable = []

    def collect(tensor: Tensor) -> None:
        if not (tensor.is_cuda or tensor.is_pinned()):
            pageable.append(tensor)

    _visit(data, collect)
    copies = dict(zip(map(id, pageable), _copied(pageable, device), strict=True))

    def copy(tensor: Tensor) -> Tensor:
        found = copies.get(id(tensor))
        return tensor.to(device, non_blocking=True) if found is None else found

    return map_tensors(data, copy)


def _copied(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copies tensors by one pinned buffer; each gets its part of one new storage."""
    starts, end = [], 0
    for tensor in tensors:
        starts.append(end)
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    if not end:
        return [tensor.to(device) for tensor in tensors]
    pinned = torch.empty(end, dtype=torch.uint8, pin_memory=True)
    for tensor, start in zip(tensors, starts, strict=True):
        _part(pinned, start, tensor).copy_(tensor)
    there = pinned.to(device, non_blocking=True)
    return [_part(there, start, tensor) for tensor, start in zip(tensors, starts, strict=True)]


def _part(buffer: Tensor, start: int, like: Tensor) -> Tensor:
    """Returns a part of the buffer's memory as a contiguous tensor of the shape of another.

    It is no view: in-place changes of one part leave the others valid for autograd.
    """
    part = torch.empty(0, dtype=like.dtype, device=buffer.device)
    return part.set_(buffer.untyped_storage(), start // like.element_size(), like.shape)


def map_tensors(data, function: Callable[[Tensor], Tensor]):
    """Returns data of the same structure with other tensors."""
    if torch.is_tensor(data):
        return function(data)
    if isinstance(data, BaseDataElement):
        result = data.new()
        for key, value in data.items():
            result.set_data({key: map_tensors(value, function)})
        return result
    if torch.is_tensor(getattr(data, 'tensor', None)):  # mmdet's boxes
        return type(data)(function(data.tensor), clone=False)
    if isinstance(data, Mapping):
        return {key: map_tensors(value, function) for key, value in data.items()}
    if isinstance(data, tuple) and hasattr(data, '_fields'):
        return type(data)(*(map_tensors(value, function) for value in data))
    if isinstance(data, list | tuple):
        return type(data)(map_tensors(value, function) for value in data)
    return data


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
        mean: [C or 1, 1, 1] in fp32, or None to leave the values as they are.
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
    batch = torch.full(
        (len(images), first.shape[0], *size), pad_value, dtype=torch.float32, device=first.device
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
