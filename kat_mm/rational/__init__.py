"""The group-rational function: the compiled op, its plain PyTorch reference and the layer."""

from .layer import GroupRational, published_state_dict
from .op import rational
from .reference import rational_reference

__all__ = ['GroupRational', 'published_state_dict', 'rational', 'rational_reference']
