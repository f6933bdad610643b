"""Attention over the tokens of a feature map. Takes torch alone.

Each file here may define attentions; they are found by being in this folder. `base.py` says what
an attention is, `windows.py` restricts any of them to windows.
"""

from ..post_import import when_imported
from ..registry import ATTENTIONS, import_all
from . import flops
from .base import Attention

import_all(__name__)
when_imported('torch.utils.flop_counter', flops.register, 'count its ops in FlopCounterMode')

__all__ = ['ATTENTIONS', 'Attention']
