"""Puts something of kat_mm in the place of another package's, once in a process."""

from collections.abc import Callable


def replace(owner: object, name: str, make: Callable) -> None:
    """Puts make(original) in the place of `owner.name`, unless that has been done."""
    original = getattr(owner, name)
    if not hasattr(original, '_by_kat_mm'):
        replacement = make(original)
        replacement._by_kat_mm = True
        is_static = isinstance(vars(owner).get(name), staticmethod)
        setattr(owner, name, staticmethod(replacement) if is_static else replacement)
