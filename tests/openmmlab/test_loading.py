"""Images that are not whole are refused by name; the others load as mm loads them."""

import re

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmcv.transforms import LoadImageFromFile

import kat_mm.openmmlab  # noqa: F401
from kat_mm.errors import DataError
from kat_mm.openmmlab.loading import LoadCheckedImage


def encoded(suffix, size=(40, 60)):
    rows, columns = np.mgrid[: size[0], : size[1]]
    image = np.stack([rows * 4, columns * 3, rows + columns], 2).astype(np.uint8)
    return cv2.imencode(suffix, image)[1].tobytes()


def load(path):
    return LoadCheckedImage()({'img_path': str(path)})


def refusal(path):
    with pytest.raises(DataError) as caught:
        load(path)
    message = str(caught.value)
    assert re.fullmatch(rf'image {re.escape(str(path))} cannot be read: .+', message)
    return message


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
def test_whole_images_load_as_mm_loads_them(tmp_path, suffix):
    path = tmp_path / f'image{suffix}'
    path.write_bytes(encoded(suffix))
    loaded, expected = load(path), LoadImageFromFile()({'img_path': str(path)})
    # Decoders of JPEG may round differently.
    np.testing.assert_allclose(
        loaded['img'].astype(int), expected['img'], atol=0 if suffix == '.png' else 3
    )
    assert loaded['img_shape'] == loaded['ori_shape'] == (40, 60)


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
@pytest.mark.parametrize('part', [0.0, 0.02, 0.3, 0.6, 0.9])
def test_truncated_images_are_named(tmp_path, suffix, part):
    path = tmp_path / f'truncated{suffix}'
    content = encoded(suffix)
    path.write_bytes(content[: int(part * len(content))])
    refusal(path)


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
@pytest.mark.parametrize('content', [b'\0' * 500, b'<html>not found</html>', b'\xff\xd8\xff'])
def test_corrupt_images_are_named(tmp_path, suffix, content):
    path = tmp_path / f'corrupt{suffix}'
    path.write_bytes(content)
    refusal(path)


def test_a_missing_image_is_named(tmp_path):
    assert 'No such file' in refusal(tmp_path / 'missing.jpg')


def test_other_arguments_are_those_of_mm(tmp_path):
    path = tmp_path / 'image.png'
    path.write_bytes(encoded('.png'))
    loader = LoadCheckedImage(to_float32=True, imdecode_backend='cv2')
    assert loader({'img_path': str(path)})['img'].dtype == np.float32
    assert LoadCheckedImage(ignore_empty=True)({'img_path': str(tmp_path / 'missing')}) is None


@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.sampled_from(['.jpg', '.png']), st.data())
def test_damage_is_refused_by_name_or_harmless(tmp_path, suffix, data):
    """Whatever is done to a file, there is no other error, and no message of several lines."""
    content = bytearray(encoded(suffix))
    for _ in range(data.draw(st.integers(1, 5))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    path = tmp_path / f'damaged{suffix}'
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        image = load(path)['img']
    except DataError:
        refusal(path)
    else:
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
