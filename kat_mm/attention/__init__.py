"""Attention over the tokens of a feature map. Takes torch alone.

Each file here may define attentions; they are found by being in this folder. `base.py` says what
an attention is, `windows.py` restricts any of them to windows.
"""

from ..registry import ATTENTIONS, import_all
from .base import Attention

import_all(__name__)

__all__ = ['ATTENTIONS', 'Attention']
