"""Batches that pass from a loader's worker to the training process in two pieces.

torch sends each tensor as shared memory of its own, for which the receiving process asks the worker
by a socket: dozens of times for a batch of a detector, while the training that it feeds waits for
Python's lock. `collate_fn=dict(type='compact_collate')` of a data loader puts large tensors, the
images, into one piece of shared memory, and pickles small ones by value. What arrives is the same.
"""

import io
import pickle
from itertools import accumulate

import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import FUNCTIONS
from torch import Tensor
from torch.utils.data import get_worker_info

LARGE = 2**19  # bytes; above are images, below label maps of bytes
ALIGNMENT = 64  # bytes


@FUNCTIONS.register_module()
def compact_collate(samples: list) -> dict:
    """Collates samples as mmengine's pseudo_collate does, to be sent in two pieces."""
    batch = pseudo_collate(samples)
    if get_worker_info() is None or not isinstance(batch, dict):
        return batch
    return CompactBatch(batch)


class CompactBatch(dict):
    """A batch that is pickled in two pieces, and unpickled as a dict."""

    def __reduce__(self):
        payload = io.BytesIO()
        pickler = _Pickler(payload)
        pickler.dump(dict(self))
        return _restored, (payload.getvalue(), *_joined(pickler.large))


class _Pickler(pickle.Pickler):
    """Pickles small tensors by value, and for large ones their number in `large`."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.large: list[Tensor] = []

    def persistent_id(self, value) -> int | None:
        is_large = type(value) is Tensor and value.nbytes >= LARGE and _is_plain(value)
        if not is_large:
            return None
        self.large.append(value)
        return len(self.large) - 1

    def reducer_override(self, value):
        if type(value) is Tensor and _is_plain(value):
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, payload: bytes, large: list[Tensor]):
        super().__init__(io.BytesIO(payload))
        self.large = large

    def persistent_load(self, number: int) -> Tensor:
        return self.large[number]


def _is_plain(tensor: Tensor) -> bool:
    """Tells whether a tensor is its values alone, which numpy holds as well."""
    has_type = tensor.dtype not in (torch.bfloat16, torch.complex32) and not tensor.is_quantized
    is_dense = tensor.layout == torch.strided and tensor.device.type == 'cpu'
    return has_type and is_dense and not tensor.requires_grad and not tensor.is_conj()


def _joined(tensors: list[Tensor]) -> tuple[Tensor, list[tuple]]:
    """Copies tensors into one piece of shared memory, with the place, dtype and shape of each."""
    sizes = [-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors]
    ends = [0, *accumulate(sizes)]
    joined = torch.empty(ends[-1], dtype=torch.uint8).share_memory_()
    places = [(start, x.dtype, x.shape) for start, x in zip(ends, tensors, strict=False)]
    for tensor, place in zip(tensors, places, strict=True):
        _part(joined, *place).copy_(tensor)
    return joined, places


def _part(joined: Tensor, start: int, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    return joined[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)


def _restored(payload: bytes, joined: Tensor, places: list[tuple]) -> dict:
    return _Unpickler(payload, [_part(joined, *place) for place in places]).load()
