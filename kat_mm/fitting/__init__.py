"""Fits of rational functions, and trained transformers turned into KATs by them. Takes scipy."""

try:
    import scipy  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'kat_mm: fitting rational functions takes scipy: pip install scipy'
    ) from error

from .convert import to_kat
from .report import ConversionReport, ConvertedMLP, LeftMLP

__all__ = ['ConversionReport', 'ConvertedMLP', 'LeftMLP', 'to_kat']
