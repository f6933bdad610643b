"""Whose ops mmcv has here."""

from importlib.util import find_spec

import kat_mm.openmmlab  # noqa: F401

COMPILED = not find_spec('mmcv._ext').origin.endswith('mmcv_ext.py')
