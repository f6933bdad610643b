"""The network: KAT and its parts, in plain PyTorch."""

from .ffn.gr_kan import GRKAN
from .kat import KAT
from .pretrained import load_pretrained
from .pyramid import SimplePyramid
from .sizes import ARCHS

__all__ = ['ARCHS', 'GRKAN', 'KAT', 'SimplePyramid', 'load_pretrained']
