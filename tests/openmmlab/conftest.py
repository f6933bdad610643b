import pytest
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True)
def no_scope():
    """Whatever other tests have set, mmengine's own classes are meant here."""
    with DefaultScope.overwrite_default_scope(None):
        yield
