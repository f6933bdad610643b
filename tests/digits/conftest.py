import pytest

from kat_mm.digits.scenes import SceneSpec
from kat_mm.digits.writer import write_dataset

TRAIN, VAL = 14, 9


@pytest.fixture(scope='session')
def digit_scenes(tmp_path_factory):
    """A small data set on disk; tests only read it."""
    root = tmp_path_factory.mktemp('data') / 'digit_scenes'
    assert write_dataset(root, SceneSpec(), TRAIN, VAL)
    return root
