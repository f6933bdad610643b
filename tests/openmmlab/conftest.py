import pytest
from mmengine.registry import DefaultScope

import kat_mm.openmmlab  # noqa: F401, brings mmcv's ops


@pytest.fixture(autouse=True)
def no_scope():
    """Whatever other tests have set, mmengine's own classes are meant here."""
    with DefaultScope.overwrite_default_scope(None):
        yield
