"""Functions that the user names on the command line."""

import importlib
from collections.abc import Callable
from difflib import get_close_matches

from ..errors import ConfigError, one_line


def load_callable(name: str, argument: str) -> Callable:
    """Imports the function `module:callable` that a command-line argument names.

    Raises:
        ConfigError: names the argument and what of it is wrong.
    """
    module_name, _, attribute = name.partition(':')
    if not module_name or not attribute.isidentifier():
        raise ConfigError(
            f'{argument} {name}: must be module:callable, such as my_ops.rational:rational'
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module does when it is imported
        raise ConfigError(
            f'{argument} {name}: {module_name} cannot be imported ({one_line(error)}); its folder '
            'must be in PYTHONPATH'
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        known = [k for k, v in vars(module).items() if callable(v) and k[0] != '_']
        near = get_close_matches(attribute, known, 5) or known[:5]
        raise ConfigError(
            f'{argument} {name}: {module_name} has no function {attribute}; it has: '
            f'{", ".join(near)}'
        )
    return function
