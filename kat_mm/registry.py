"""Parts of the network by name: how a config's dict becomes a module.

A new part is a class with `@ATTENTIONS.register('name')` (or one of the other registries) above it,
in a file of its own: here in the folder of its kind, which finds its files itself, or anywhere
else that is imported before the network is built.
"""

import inspect
import pkgutil
from collections.abc import Callable, Iterable
from importlib import import_module
from types import ModuleType
from typing import Any

from .errors import ConfigError

Config = str | dict


class Registry:
    """Names of the classes of one kind of part.

    Args:
        kind: what messages call it.
        default: the type of a dict without one.
    """

    def __init__(self, kind: str, default: str):
        self.kind = kind
        self.default = default
        self._classes: dict[str, type] = {}

    def register(self, name: str) -> Callable[[type], type]:
        """Returns the decorator that makes a class known by a name.

        Raises:
            KeyError: for a name that another class has.
        """

        def add(cls: type) -> type:
            known = self._classes.setdefault(name, cls)
            if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise KeyError(f'{self.kind} {name!r} is registered already, as {known}')
            self._classes[name] = cls
            return cls

        return add

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def __getitem__(self, name: str) -> type:
        return self._classes[name]

    def __iter__(self):
        return iter(self._classes)

    def config(self, value: Config) -> dict:
        """Returns a config as a dict with its type; a string is short for a dict of that type.

        Raises:
            ConfigError: for other values, and for a type that is not registered.
        """
        if isinstance(value, str):
            value = {'type': value}
        if not isinstance(value, dict):
            raise ConfigError(
                f'{self.kind}={value!r} must be a name or a dict with a type; '
                f'known: {self._known()}'
            )
        config = {'type': self.default, **value}
        name = config['type']
        if not isinstance(name, str) or name not in self._classes:
            raise ConfigError(f'unknown {self.kind} {name!r}; known: {self._known()}')
        return config

    def build(self, value: Config, *args, **context) -> Any:
        """Builds the part that a config describes.

        Args:
            value: a name, or a dict of a type and keyword arguments of its class.
            args: what the owner gives every part of this kind.
            context: the same, by name; the config's arguments go before it.

        Raises:
            ConfigError: as `config`, and for arguments that the class does not take.
        """
        options = self.config(value)
        name = options.pop('type')
        self.check(value, len(args))
        return self._classes[name](*args, **{**context, **options})

    def check(self, value: Config, given: int = 0, also: Iterable[str] = ()) -> None:
        """Checks that the class of a config takes its arguments.

        Args:
            value: as for `build`.
            given: how many arguments the owner gives, which a config may not.
            also: what it may have besides, of others.

        Raises:
            ConfigError: if not; it says what the class takes, and which other one takes it.
        """
        options = self.config(value)
        name = options.pop('type')
        own = [*_arguments(self._classes[name], given), *also]
        if not (unknown := [option for option in options if option not in own]):
            return
        others = (
            f'; type={other!r} takes {"it" if len(unknown) == 1 else "them"}'
            for other, cls in self._classes.items()
            if {*unknown} <= {*_arguments(cls, given)}
        )
        raise ConfigError(
            f'{self.kind} {name!r} takes no {", ".join(unknown)}; it takes '
            f'{", ".join(own) or "no arguments"}{"".join(others)}'
        )

    def _known(self) -> str:
        return ', '.join(self._classes)


def _arguments(cls: type, given: int) -> list[str]:
    """Returns the names of a class's arguments behind the first ones, as keywords."""
    parameters = inspect.signature(cls).parameters.values()
    places = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    own = places[given:]
    return own + [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


def import_all(package: ModuleType | str) -> None:
    """Imports the modules in a package, so that the parts defined there are registered."""
    package = import_module(package) if isinstance(package, str) else package
    for module in pkgutil.iter_modules(package.__path__):
        import_module(f'{package.__name__}.{module.name}')


ATTENTIONS = Registry('attention', 'softmax')
BASES = Registry('basis', 'fourier')
FFNS = Registry('ffn', 'gr_kan')
ACTIVATIONS = Registry('activation', 'rational')
PYRAMIDS = Registry('pyramid', 'simple')
