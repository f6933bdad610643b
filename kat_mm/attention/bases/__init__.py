"""Bases of the learnable functions of Kolmogorov-Arnold attention. Takes torch alone.

Each file here may define bases; they are found by being in this folder. `base.py` says what a basis
is.
"""

from ...registry import BASES, import_all
from .base import Basis, LinearBasis

import_all(__name__)

__all__ = ['BASES', 'Basis', 'LinearBasis']
