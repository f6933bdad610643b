"""The ops' autograd nodes in C++, for plain calls: the same results, in less of the host's time.

They are a library that is bound to the torch and the Python that built it (`setup.py`), loaded
where both are the same, and optional. Calls that are not plain (transforms of torch.func, forward
mode, compilation, tracing, subclasses of tensors, modes), and all calls without the library, take
the nodes in Python. With KAT_MM_CPP_AUTOGRAD=0 in the environment it is not loaded.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

import torch

from .schemas import MARK

VARIABLE = 'KAT_MM_CPP_AUTOGRAD'


def module_name(torch_version: str) -> str:
    """Returns the name of the library for a version of torch, beside the package's folders."""
    return f'_C_autograd_{MARK}_torch_{re.sub(r"[^0-9A-Za-z]", "_", torch_version)}'


def _load() -> ModuleType | None:
    if os.environ.get(VARIABLE) == '0':
        return None
    package = __package__.rpartition('.')[0]
    try:
        return import_module(f'{package}.{module_name(torch.__version__)}')
    except ImportError:  # of a library that is not there, or that the linker refuses
        return None


library = _load()


def is_used() -> bool:
    """Tells whether plain calls take the nodes in C++."""
    return library is not None and library.is_enabled()


@contextmanager
def switched(on: bool) -> Iterator[None]:
    """Turns the nodes in C++ on or off meanwhile, in all threads; without the library does nothing.

    Results that were computed before keep the nodes that they have.
    """
    if library is None:
        yield
        return
    was_on = library.is_enabled()
    library.enable(on)
    try:
        yield
    finally:
        library.enable(was_on)
