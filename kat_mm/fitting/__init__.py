"""Fits of rational functions and of attention to those of trained transformers. Takes scipy."""

try:
    import scipy  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'kat_mm: fitting rational functions takes scipy: pip install scipy'
    ) from error

from .attention import BlockFit, fit_attention, softmax_twin
from .convert import to_kat
from .report import ConversionReport, ConvertedMLP, LeftMLP

__all__ = [
    'BlockFit',
    'ConversionReport',
    'ConvertedMLP',
    'LeftMLP',
    'fit_attention',
    'softmax_twin',
    'to_kat',
]
