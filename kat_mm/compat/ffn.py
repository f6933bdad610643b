"""Lets mmcv's `FFN` be configured by type: `ffn_cfg=dict(type='GRKAN', ...)`.

mmcv's own transformer layer builds its feed-forward network by type. The layers of mmdet and mmseg
call `FFN(**ffn_cfg)` instead, to which a type is an unexpected argument.
"""

import inspect
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_NAME = 'mmcv.cnn.bricks.transformer'


class FFNFinder(MetaPathFinder):
    """Finds the module of mmcv's `FFN` where Python does, and lets that class honour a type.

    It does so when something imports the module, as `import kat_mm` would take nearly twice its
    time with it: the module imports all of mmcv's ops.
    """

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        """The spec of mmcv's module; None for every other name."""
        spec = PathFinder.find_spec(fullname, path, target) if fullname == _NAME else None
        if spec is not None:
            execute = spec.loader.exec_module

            def execute_and_honour_type(module: ModuleType) -> None:
                execute(module)
                _honour_type(module.FFN)

            spec.loader.exec_module = execute_and_honour_type
        return spec


def _honour_type(ffn: type) -> None:
    """Makes a call of the class `ffn` with a `type` build that by mmengine's registry.

    A metaclass does it, and not `__new__`: an FFN, or a subclass of it, that `__new__` returned
    would be initialised again, with the type as an argument.
    """
    from mmengine.registry import MODELS

    class BuiltByType(type(ffn)):
        # The metaclass's __call__ would hide what the class takes from help and editors.
        __signature__ = property(lambda cls: inspect.signature(cls.__init__.__get__(cls)))

        def __call__(cls, *args, **kwargs):
            if cls is ffn and 'type' in kwargs and not args:
                return MODELS.build(kwargs)
            return super().__call__(*args, **kwargs)

    ffn.__class__ = BuiltByType


_FINDER = FFNFinder()


def honour_ffn_type() -> None:
    """Let `FFN(type=..., ...)` build by type, wherever mmcv is and as soon as it is imported.

    Safe to call any number of times. Without a type nothing changes, and nothing does for
    subclasses of FFN.
    """
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
        if _NAME in sys.modules:
            _honour_type(sys.modules[_NAME].FFN)
