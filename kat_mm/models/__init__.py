"""The network: KAT and its parts, in plain PyTorch."""

from .ffn.gr_kan import GRKAN
from .pyramid import SimplePyramid

__all__ = ['GRKAN', 'SimplePyramid']
