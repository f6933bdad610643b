"""Numbers on the device of what is computed with, to which they are copied only once."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode


def constant(values: Sequence[float], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Returns numbers as a tensor on the device of another, and in its dtype unless told."""
    make = _kept if may_keep() else _made
    return make(tuple(values), dtype or like.dtype, like.device)


def may_keep() -> bool:
    """Returns whether a tensor made now is one for later calls, and one made before is for now.

    It is not under a dispatch mode: that of FakeTensorMode has no values, and none but its own take
    part there.
    """
    return torch.compiler.is_dynamo_compiling() or _get_current_dispatch_mode() is None


def _made(values: tuple, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # of which a tensor could not take part in training
        return torch.tensor(values, dtype=dtype, device=device)


_kept = functools.lru_cache(maxsize=64)(_made)
