"""Kolmogorov-Arnold Transformers for dense prediction, with a compiled rational op.

`kat_mm.rational` has the op and its layer, `kat_mm.models` the network; both take torch alone.
`kat_mm.to_kat` puts rational activations into trained transformers and takes scipy.
`kat_mm.openmmlab` has all that OpenMMLab's models and tools need; a config imports it by
`custom_imports=dict(imports=['kat_mm.openmmlab'])`. This import changes no other package; where
timm is imported, before or after, its `create_model` knows the KAT models.
"""

from importlib import import_module

from . import rational
from .post_import import when_imported

__version__ = '0.1.0'
__all__ = ['rational', 'to_kat']


def __getattr__(name: str):
    if name != 'to_kat':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from .fitting import to_kat  # takes scipy, which nothing else here does

    return to_kat


def _register_with_timm(_) -> None:
    import_module('kat_mm.models.timm_models')
    import_module('kat_mm.models.timm_karat')


when_imported('timm.models', _register_with_timm, 'register its models with timm')
