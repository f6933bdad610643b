"""Kolmogorov-Arnold Transformer backbones for dense prediction on OpenMMLab.

With torch alone, `kat_mm.rational` is there, the op and its layer; with scipy also `to_kat`, which
puts them into trained transformers. Where mmengine is installed, the import also registers the
backbone KAT and its parts in mmengine's root registries, and lets today's torch run the OpenMMLab
releases (`kat_mm.compat`); so `custom_imports=dict(imports=['kat_mm'])` is all that a config needs.
Where timm is installed, its `create_model` knows the KAT models.
"""

from importlib import import_module
from importlib.util import find_spec

from . import rational
from .on_import import when_imported

__version__ = '0.1.0'
__all__ = ['rational']

if find_spec('mmengine'):
    from . import compat

    compat.install()
    from . import engine, models

    __all__ += ['compat', 'engine', 'models']
    if find_spec('mmcv'):
        from .datasets import loading  # noqa: F401, registers the image loader


def __getattr__(name: str):
    if name != 'to_kat':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from .conversion import to_kat  # takes scipy, which nothing else here does

    return to_kat


when_imported('timm.models', lambda _: import_module('kat_mm.models.timm_entry'))
