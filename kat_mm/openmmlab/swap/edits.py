"""Changes of a config, each with its reason."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from mmengine.config import Config

MISSING = type('Missing', (), {'__repr__': lambda self: 'nothing'})()


class Change(NamedTuple):
    """A setting that was changed, by its dotted name; `MISSING` stands for none."""

    key: str
    old: Any
    new: Any
    reason: str


class Edits:
    """Writes to a config and remembers what it has changed. Numbers in keys are list indices."""

    def __init__(self, config: Config):
        self.config = config
        self.changes: list[Change] = []

    def get(self, key: str, default=None):
        """Returns the value at a dotted name."""
        value = self.config._cfg_dict
        for part in key.split('.'):
            try:
                value = value[int(part) if isinstance(value, list | tuple) else part]
            except (KeyError, IndexError, TypeError, ValueError):
                return default
        return value

    def set(self, key: str, value, reason: str) -> None:
        """Sets a value, unless it is there already, and dicts on the way to it."""
        old = self.get(key, MISSING)
        if old is MISSING or old != value:
            parent, last = self._parent(key)
            parent[last] = value
            self.changes.append(Change(key, old, value, reason))

    def remove(self, key: str, reason: str) -> None:
        """Removes a value, if there is one."""
        old = self.get(key, MISSING)
        if old is not MISSING:
            parent, last = self._parent(key)
            del parent[last]
            self.changes.append(Change(key, old, MISSING, reason))

    def dicts(self, key: str) -> Iterator[tuple[str, dict]]:
        """Yields every dict at or below a name, each with its own name, outermost first."""
        node = self.get(key)
        if isinstance(node, dict):
            yield key, node
        names = node if isinstance(node, dict) else range(len(node) if _is_list(node) else 0)
        for name in list(names):
            yield from self.dicts(f'{key}.{name}')

    def _parent(self, key: str):
        path, _, last = key.rpartition('.')
        if not path:
            return self.config._cfg_dict, last
        parent = self.get(path)
        if parent is None:
            grandparent, name = self._parent(path)
            grandparent[name] = {}
            parent = grandparent[name]
        return parent, int(last) if _is_list(parent) else last


def _is_list(node) -> bool:
    return isinstance(node, list | tuple)
