"""Checks of single arguments; an error names the argument, its value and what it must be."""

from collections.abc import Iterable
from numbers import Integral, Real

from .errors import ConfigError


def is_int(value: object) -> bool:
    """Tells whether a value is a whole number; a bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_int(name: str, value: int, low: int = 1, high: int | None = None) -> int:
    """Returns a whole number from `low` on, up to `high` if that is given.

    Raises:
        ConfigError: for any other value.
    """
    if not is_int(value) or value < low or (high is not None and value > high):
        end = 'on' if high is None else f'to {high}'
        raise ConfigError(f'{name}={value!r} must be a whole number from {low} {end}')
    return int(value)


def check_ints(name: str, values: Iterable[int], low: int = 1) -> tuple[int, ...]:
    """Returns a sequence of whole numbers from `low` on as a tuple.

    Raises:
        ConfigError: for any other value.
    """
    if isinstance(values, (str, dict)) or not isinstance(values, Iterable):
        raise ConfigError(f'{name}={values!r} must be a sequence of whole numbers')
    return tuple(check_int(f'{name}[{i}]', value, low) for i, value in enumerate(values))


def check_number(name: str, value: float) -> float:
    """Returns a number.

    Raises:
        ConfigError: for any other value, such as a text.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise ConfigError(f'{name}={value!r} must be a number')
    return value


def check_probability(name: str, value: float) -> float:
    """Returns a number in [0, 1].

    Raises:
        ConfigError: for any other value.
    """
    if not 0 <= check_number(name, value) <= 1:
        raise ConfigError(f'{name}={value!r} must lie in [0, 1]')
    return value
