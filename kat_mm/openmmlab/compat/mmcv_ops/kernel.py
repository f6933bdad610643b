"""How every op here is run: without autograd, without autocast, in fp32 or fp64."""

import functools

import torch
from torch import Tensor


def kernel(function):
    """Wrap `function`, whose first argument is a tensor, to run without autograd and autocast.

    mmcv calls these functions inside an active autocast region. Their dtypes are explicit, so
    that autocast, which knows some of the ops inside and not others, has nothing to decide.
    """

    @functools.wraps(function)
    def wrapped(tensor: Tensor, *args, **kwargs):
        device = 'cpu' if tensor.is_meta else tensor.device.type  # autocast knows no meta device
        with torch.no_grad(), torch.autocast(device, enabled=False):
            return function(tensor, *args, **kwargs)

    return wrapped


def to_float(*tensors: Tensor) -> list[Tensor]:
    """The tensors, detached, in the dtype to compute in: fp64 if one of them is, else fp32.

    16-bit inputs are computed in fp32 and rounded once, on the way into the output: not every
    kernel of torchvision takes them, and positions in 16 bits would miss whole pixels of a large
    image. Integer masks and tensors of mixed dtypes become floats on the same way.
    """
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return [tensor.detach().to(torch.float64 if wide else torch.float32) for tensor in tensors]
