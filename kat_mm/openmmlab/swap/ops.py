"""Which of mmcv's ops a model calls where no compiled mmcv is installed, found without running it.

Some ops are called in prediction alone, after hours of training, so the model's code is read.
"""

import inspect
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from torch import nn
from torch.autograd import Function

# What these hold and call is not a model's.
FOREIGN = {'builtins', 'torch', 'numpy', *sys.stdlib_module_names}


class Ops(NamedTuple):
    """Ops that a model calls, each with the name of a part that does: here, and missing here."""

    supplied: dict[str, str]
    missing: dict[str, str]


def called_ops(model: nn.Module) -> Ops:
    """Returns the ops of mmcv that parts of a model call; none where mmcv's own are installed.

    Parts are modules and what they hold: assigners, samplers, coders. Of the functions that their
    methods call, and these in turn, all count, whether a setting of the model leads there or not;
    the ops of layers count where the model has such layers.
    """
    ops = Ops({}, {})
    ext = sys.modules.get('mmcv._ext')
    if not hasattr(ext, 'NOT_SUPPLIED'):
        return ops
    seen: set[int] = set()
    for part in {type(each): None for each in _parts(model, seen)}:
        for function in _methods(part):
            for name in _ops(function, seen):
                if name in ext.__all__:
                    ops.supplied.setdefault(name, part.__name__)
                elif name in ext.NOT_SUPPLIED:
                    ops.missing.setdefault(name, part.__name__)
    return ops


def _parts(node: Any, seen: set[int]) -> Iterator[Any]:
    """Yields an object and all that it holds, but tensors and what is not a model's."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, dict | list | tuple):
        held = node.values() if isinstance(node, dict) else node
    elif isinstance(node, nn.Module) or (hasattr(node, '__dict__') and not _is_foreign(type(node))):
        yield node
        held = vars(node).values()
    else:
        return
    for each in held:
        yield from _parts(each, seen)


def _methods(part: type) -> Iterator[FunctionType]:
    for base in part.__mro__:
        if not _is_foreign(base):
            for value in vars(base).values():
                function = getattr(value, 'fget', None) or getattr(value, '__func__', value)
                if isinstance(function, FunctionType):
                    yield function


def _ops(function: FunctionType, seen: set[int]) -> Iterator[str]:
    """Yields what a function, and those that it calls by name, read from mmcv's `ext_module`."""
    function = inspect.unwrap(function)
    if id(function) in seen or _is_foreign(function):
        return
    seen.add(id(function))
    names = set(_names(function.__code__))
    if 'ext_module' in names:
        yield from names
    for name in names:
        called = function.__globals__.get(name)
        called = getattr(called, '__self__', called)  # `f = SomeFunction.apply`
        if isinstance(called, FunctionType):
            yield from _ops(called, seen)
        elif isinstance(called, type) and issubclass(called, Function):
            for method in _methods(called):
                yield from _ops(method, seen)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _is_foreign(thing: type | FunctionType) -> bool:
    return (thing.__module__ or '').partition('.')[0] in FOREIGN
