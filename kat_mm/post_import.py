"""Acts as soon as another package is imported, so that none is imported for its sake."""

import sys
import threading
import warnings
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from .errors import one_line

Action = Callable[[ModuleType], object]
_ACTIONS: dict[str, dict[Action, str]] = {}  # by module: what to do, and how warnings call it


class _Loader:
    """Loads a module as `loader` does, and then acts. The module itself knows `loader` alone.

    The loader is wrapped, not changed: one may serve many modules, as that of a zip archive does.
    """

    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name: str):
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        for action in tuple(_ACTIONS[module.__name__]):
            _act(action, module)


class _Finder(MetaPathFinder):
    """Finds the modules of `_ACTIONS`, and no other, wherever the finders behind it do."""

    def __init__(self):
        self._this_thread = threading.local()

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        # Finders like this one search all of sys.meta_path, and so come back here.
        if fullname not in _ACTIONS or getattr(self._this_thread, 'searches', False):
            return None
        self._this_thread.searches = True
        try:
            others = (finder for finder in sys.meta_path if hasattr(finder, 'find_spec'))
            specs = (finder.find_spec(fullname, path, target) for finder in others)
            spec = next(filter(None, specs), None)
        finally:
            self._this_thread.searches = False
        if spec is not None and hasattr(spec.loader, 'exec_module'):
            spec.loader = _Loader(spec.loader)
        return spec


_FINDER = _Finder()


def when_imported(name: str, action: Action, purpose: str) -> None:
    """Calls action(module) each time that the module `name` is executed, and now if it has been.

    An action that raises ends no import: a warning says what is wrong. The same action counts once.

    Args:
        name: the full name of a module.
        action: takes the module; there may be several for a name, which act in their order.
        purpose: what the action does, for the warning, such as 'register its models with timm'.
    """
    actions = _ACTIONS.setdefault(name, {})
    if action in actions:
        return
    actions[action] = purpose
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    if module := sys.modules.get(name):
        _act(action, module)


def _act(action: Action, module: ModuleType) -> None:
    name = module.__name__
    try:
        action(module)
    except Exception as error:  # whatever another version of that package may do
        warnings.warn(
            f'kat_mm cannot {_ACTIONS[name][action]} ({one_line(error)}). {name} works as without '
            f'kat_mm; to have both, upgrade {name.partition(".")[0]} or kat_mm',
            RuntimeWarning,
            stacklevel=2,
        )
