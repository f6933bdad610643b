"""Runs code as soon as another package is imported, so that none is imported for its sake."""

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_ACTIONS: dict[str, Callable[[ModuleType], None]] = {}


class _Finder(MetaPathFinder):
    """Finds the modules of `_ACTIONS` where Python does, and acts once they are executed."""

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname in _ACTIONS else None
        if spec is not None:
            execute = spec.loader.exec_module

            def execute_and_act(module: ModuleType) -> None:
                execute(module)
                _ACTIONS[fullname](module)

            spec.loader.exec_module = execute_and_act
        return spec


_FINDER = _Finder()


def when_imported(name: str, action: Callable[[ModuleType], None]) -> None:
    """Calls action(module) when the module `name` is imported, or now if it has been.

    Further calls for the same name do nothing.
    """
    if name in _ACTIONS:
        return
    _ACTIONS[name] = action
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    if name in sys.modules:
        action(sys.modules[name])
