"""The group-rational function: the compiled op, its plain PyTorch reference and the layer."""

from .layer import GroupRational
from .op import rational
from .reference import rational_reference

__all__ = ['GroupRational', 'rational', 'rational_reference']
