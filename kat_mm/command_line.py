"""What command-line tools share: errors in one line, options, functions that the user names."""

import argparse
import importlib
import re
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

import torch

from .errors import ConfigError, UserError, one_line

BAD_IMAGE = 'failed to load image: '  # mm's loader asserts it, with the name


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


def run_reporting_errors(main: Callable[[], None]) -> None:
    """Runs `main`; what the user can mend ends it with one line on stderr and exit status 1."""
    try:
        main()
    except (UserError, AssertionError) as error:
        # Loader workers and mm's registries wrap the message; its last line is our own.
        message = (str(error).strip().splitlines() or [''])[-1]
        if isinstance(error, AssertionError) and BAD_IMAGE not in message:
            raise
        message = re.sub(r'^([\w.]+Error: )?(class `\w+` in \S+: )*', '', message)
        print(f'error: {message}', file=sys.stderr)
        sys.exit(1)


def positive(text: str) -> int:
    """Parses an option that counts something."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f'must be a whole number from 1 on, got {text!r}')
    return int(text)


def check_file(option: str, path: Path, suffix: str = '') -> None:
    """Checks that an option names a file that can be written, and makes its folder.

    Raises:
        ConfigError: names the option and what is wrong with the file.
    """
    if path.suffix != (suffix or path.suffix):
        raise ConfigError(f'{option} {path}: the name must end with {suffix}')
    if path.is_dir():
        raise ConfigError(f'{option} {path}: is a folder; name a file')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f'{option} {path}: cannot be written ({one_line(error)})') from error


def check_folder(option: str, path: Path) -> None:
    """Checks that an option names a folder, which is made where it is missing.

    Raises:
        ConfigError: names the option and why there can be no such folder.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f'{option} {path}: cannot be a folder ({one_line(error)}); name another'
        ) from error


def choose_device(name: str | None) -> torch.device:
    """Returns the device of a --device option; without one a GPU if there is any.

    Raises:
        ConfigError: for a device that is unknown or not there.
    """
    if name is None:
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ('cuda', 'cpu'):
        raise ConfigError(f'--device {name}: must be cuda or cpu')
    if device.type == 'cuda':
        if (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                f'--device {name}: torch finds {torch.cuda.device_count()} GPUs; use --device cpu'
            )
        torch.cuda.set_device(0 if device.index is None else device.index)
    return device
