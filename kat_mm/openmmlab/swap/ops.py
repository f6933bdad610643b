"""Which of mmcv's ops a model calls that this environment lacks, found without running the model.

Some ops are called in prediction alone, after hours of training, so their code is read instead.
"""

import inspect
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import nn
from torch.autograd import Function

# What these hold and call is not a model's.
FOREIGN = {'builtins', 'torch', 'numpy', *sys.stdlib_module_names}


def missing_ops(model: nn.Module) -> dict[str, str]:
    """Returns the ops of mmcv that parts of a model call in vain, each with the name of a part.

    Parts are modules and what they hold: assigners, samplers, coders. Of the functions that their
    methods call, and these in turn, all count, whether a setting of the model leads there or not;
    the ops of layers count where the model has such layers.
    """
    ext = sys.modules.get('mmcv._ext')
    missing = getattr(ext, 'NOT_SUPPLIED', ())  # a compiled one has all
    found: dict[str, str] = {}
    seen: set[int] = set()
    for part in {type(each): None for each in _parts(model, seen)}:
        for function in _methods(part):
            for op in _ops(function, seen):
                if op in missing:
                    found.setdefault(op, part.__name__)
    return found


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
