"""Turns the MLPs of a trained transformer into GR-KAN layers that compute the same."""

from .convert import to_kat
from .report import ConversionReport, ConvertedMLP, LeftMLP

__all__ = ['ConversionReport', 'ConvertedMLP', 'LeftMLP', 'to_kat']
