"""Errors that the user can mend: the command-line tools report them in one line."""


class UserError(Exception):
    """An input is wrong; the message names it and says what to do."""


class ConfigError(UserError, ValueError):
    """A config, or a value in it, is wrong."""


class DataError(UserError, OSError):
    """A data set, an image or a checkpoint is missing or cannot be read."""


class NonFiniteLossError(UserError, RuntimeError):
    """Training diverged: a loss term or a weight is NaN or infinite."""


def one_line(error: Exception) -> str:
    """Returns the type and the first line of an error."""
    return ': '.join([type(error).__name__, *str(error).strip().splitlines()[:1]])
