"""Numbers on the device of what is computed with, to which they are copied only once."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor


def constant(values: Sequence[float], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Returns numbers as a tensor on the device of another, and in its dtype unless told."""
    return _constant(tuple(values), dtype or like.dtype, like.device)


@functools.lru_cache(maxsize=64)
def _constant(values: tuple, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # of which a tensor could not take part in training
        return torch.tensor(values, dtype=dtype, device=device)
