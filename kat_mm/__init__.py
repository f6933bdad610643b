"""Kolmogorov-Arnold Transformer backbones for dense prediction on OpenMMLab."""

__version__ = '0.1.0'
