"""Brings mmcv's ops, before tests import mmdet."""

import kat_mm.openmmlab  # noqa: F401
