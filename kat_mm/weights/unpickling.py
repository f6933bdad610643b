"""Reads what `torch.save` wrote, without letting it run code.

`torch.load` rebuilds objects of allowed types alone. One list of these serves the whole process, so
what kat_mm's own reading needs in addition is not put there, but into `ALLOWED`.
"""

import pickle
from importlib.util import module_from_spec
from types import FunctionType

import torch

# By the full name that pickles know it by: what else is called, or rebuilt, in its place.
ALLOWED: dict[str, object] = {}


def load(file, map_location=None, mmap: bool | None = None) -> object:
    """Returns what a file holds, of types that `torch.load` allows or `ALLOWED` has.

    What torch.load reads by itself, with the types that the user has allowed it, is not touched by
    ALLOWED, which elsewhere goes before the user's types.

    Args:
        file, map_location, mmap: as for torch.load.

    Raises:
        UnpicklingError: for all other types, and, like other errors, for damaged files.
    """
    options = dict(map_location=map_location, mmap=mmap, weights_only=True)
    start = file.tell() if hasattr(file, 'tell') else None
    try:
        return torch.load(file, **options)
    except pickle.UnpicklingError:
        if not ALLOWED:
            raise
    if start is not None:
        file.seek(start)
    return _torch_load_with(ALLOWED)(file, **options)


def _torch_load_with(allowed: dict[str, object]) -> FunctionType:
    """Returns a torch.load of its own, which allows more.

    It is torch's code, but for the unpickler: a second copy of that module, whose types the user
    has not allowed in the process but this function has. So no other thread meets them.
    """
    original = torch._weights_only_unpickler
    unpickler = module_from_spec(original.__spec__)
    original.__spec__.loader.exec_module(unpickler)
    types = {**original._get_user_allowed_globals(), **allowed}
    unpickler._get_user_allowed_globals = lambda: types

    names = {**vars(torch.serialization), '_weights_only_unpickler': unpickler}
    names['_legacy_load'] = _with_names(torch.serialization._legacy_load, names)
    return _with_names(torch.serialization.load, names)


def _with_names(function: FunctionType, names: dict[str, object]) -> FunctionType:
    """Returns a copy of a function that finds its module's names in `names`."""
    copy = FunctionType(function.__code__, names, argdefs=function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
