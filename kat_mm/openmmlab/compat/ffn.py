"""Lets mmcv's `FFN` be configured by type: `ffn_cfg=dict(type='GRKAN', ...)`.

mmcv's own transformer layer builds its feed-forward network by type. The layers of mmdet and mmseg
call `FFN(**ffn_cfg)` instead, to which a type is an unexpected argument.
"""

import inspect
from types import ModuleType

from ...post_import import when_imported


def honour_ffn_type() -> None:
    """Let `FFN(type=..., ...)` build by type, wherever mmcv is and as soon as it is imported.

    Importing it here would take nearly as long as all of kat_mm, as its module imports all of
    mmcv's ops. Safe to call any number of times. Without a type nothing changes, and nothing does
    for subclasses of FFN.
    """
    when_imported('mmcv.cnn.bricks.transformer', _honour_type, "build mmcv's FFN by type")


def _honour_type(module: ModuleType) -> None:
    """Makes a call of the class `module.FFN` with a `type` build that by mmengine's registry.

    A metaclass does it, and not `__new__`: an FFN, or a subclass of it, that `__new__` returned
    would be initialised again, with the type as an argument.
    """
    from mmengine.registry import MODELS

    ffn = module.FFN

    class BuiltByType(type(ffn)):
        # The metaclass's __call__ would hide what the class takes from help and editors.
        __signature__ = property(lambda cls: inspect.signature(cls.__init__.__get__(cls)))

        def __call__(cls, *args, **kwargs):
            if cls is ffn and 'type' in kwargs and not args:
                return MODELS.build(kwargs)
            return super().__call__(*args, **kwargs)

    ffn.__class__ = BuiltByType
