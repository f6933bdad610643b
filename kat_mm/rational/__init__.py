"""The group-rational function: the compiled op, its plain PyTorch reference and the layer."""

from ..post_import import when_imported
from . import flops
from .layer import GroupRational, published_state_dict
from .op import rational
from .reference import rational_reference

__all__ = ['GroupRational', 'published_state_dict', 'rational', 'rational_reference']

when_imported('torch.utils.flop_counter', flops.register, 'count its ops in FlopCounterMode')
