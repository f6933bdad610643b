"""Batches of mmdet and mmseg, compared tensor by tensor."""

import numpy as np
import torch
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask.structures import BaseInstanceMasks
from mmengine.structures import BaseDataElement


def assert_equal(found, expected):
    """Checks that types, dtypes and values are the same, and meta information too."""
    assert type(found) is type(expected)
    if torch.is_tensor(found):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(found, BaseDataElement):
        assert found.metainfo == expected.metainfo
        assert_equal(dict(found.items()), dict(expected.items()))
    elif isinstance(found, dict):
        assert found.keys() == expected.keys()
        for key, value in found.items():
            assert_equal(value, expected[key])
    elif isinstance(found, list | tuple):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_equal(*pair)
    elif isinstance(found, HorizontalBoxes):
        assert_equal(found.tensor, expected.tensor)
    elif isinstance(found, BaseInstanceMasks):
        assert (found.height, found.width) == (expected.height, expected.width)
        np.testing.assert_array_equal(found.to_ndarray(), expected.to_ndarray())
    else:
        assert found == expected
