"""Checks of single arguments; an error names the argument, its value and what it must be."""

from collections.abc import Iterable, Sequence
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


def check_bool(name: str, value: bool) -> bool:
    """Returns True or False.

    Raises:
        ConfigError: for any other value.
    """
    if not isinstance(value, bool):
        raise ConfigError(f'{name}={value!r} must be True or False')
    return value


def check_indices(
    name: str,
    indices: int | Sequence[int] | None,
    count: int,
    of: str,
    default: int | Sequence[int] = (),
) -> tuple[int, ...]:
    """Returns indices in ascending order, with negative ones counted from the end.

    Args:
        name: what messages call them.
        indices: one or several; None for the default.
        count: how many things there are to choose from.
        of: what these are.
        default: where it is not empty, the indices must not be either.

    Raises:
        ConfigError: for indices out of range, of the wrong kind, or the same twice.
    """
    indices = default if indices is None else indices
    indices = tuple(indices) if isinstance(indices, Iterable) else (indices,)
    known = all(is_int(i) and -count <= i < count for i in indices)
    positive = tuple(sorted(i % count for i in indices)) if known else ()
    if not known or len(set(positive)) < len(positive):
        raise ConfigError(
            f'{name}={indices} must be different indices of the {count} {of}: 0 to {count - 1}, '
            f'or -{count} to -1'
        )
    if not positive and default != ():
        raise ConfigError(f'{name} is empty; name at least one of the {count} {of}')
    return positive
