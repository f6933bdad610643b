"""Offers `mmcv_ext.py` as the module `mmcv._ext` where no compiled one is installed."""

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path

_NAME = 'mmcv._ext'


class MmcvExtFinder(MetaPathFinder):
    """Finds `mmcv._ext`, and only that, in this package.

    It stands last in `sys.meta_path`, so Python asks it only after every other finder has found
    no `mmcv._ext`: a compiled mmcv always wins. The spec names a real file, since mmengine and
    mmcv look the module up with importlib to learn whether the ops can be used.

    Without torchvision there is nothing to build the ops from. Then the module stays missing,
    which mmengine takes, rightly, as "no mmcv ops".
    """

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        """The spec of the stand-in for `mmcv._ext`; None for every other name."""
        if fullname != _NAME or importlib.util.find_spec('torchvision') is None:
            return None
        return importlib.util.spec_from_file_location(
            _NAME, Path(__file__).with_name('mmcv_ext.py')
        )


_FINDER = MmcvExtFinder()


def install_mmcv_ext_finder() -> None:
    """Append the finder to `sys.meta_path`, once."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)
