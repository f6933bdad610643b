"""Lets `torch.load` read the checkpoints that mmengine writes, without letting them run code.

Since torch 2.6, `torch.load` rebuilds only objects of allowed types. mmengine's checkpoints hold
a few more: its HistoryBuffers (numpy arrays with their statistics) in the message hub, numpy
numbers among the metrics, and pieces of the config in the data set's meta information.

The maintained fork, onedl-mmengine, reads them as well, by a function of its own; but what that one
cannot read safely, it reads with code and all. So torch.load takes its place.
"""

import torch


def allow_mmengine_checkpoints() -> None:
    """Allow `torch.load` what mmengine's checkpoints contain; nothing if mmengine is missing.

    Safe to call any number of times. What the files may hold in addition, and why none of it can
    run code, is in checkpoint_types.py; all else stays refused, with an UnpicklingError.
    """
    if torch.__version__ < (2, 6):  # There, torch.load is not restricted by default.
        return
    try:
        import mmengine  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name == 'mmengine':
            return
        raise
    from mmengine.runner import checkpoint

    from .checkpoint_types import SAFE_GLOBALS

    torch.serialization.add_safe_globals(SAFE_GLOBALS)
    if hasattr(checkpoint, '_safe_torch_load'):
        checkpoint._safe_torch_load = torch.load
