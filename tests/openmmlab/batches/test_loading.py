"""Images that are not whole are refused by name; the others load as mm loads them."""

import re

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmcv.transforms import LoadImageFromFile
from PIL import Image

import kat_mm.openmmlab  # noqa: F401
from kat_mm.errors import DataError
from kat_mm.openmmlab.batches.loading import LoadCheckedImage


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


GREY = np.tile(np.linspace(0, 255, 64), (48, 1)).astype(np.uint8)
COLOURS = np.dstack([GREY, GREY[::-1], GREY[:, ::-1]])
DEEP = COLOURS.astype(np.uint16) * 257
TURNED = Image.Exif()
TURNED[0x0112] = 6  # to be shown rotated by 90 degrees


def saved(path, pixels, mode=None, **options):
    """Saves an image by Pillow; in mode P, one with a palette whose first colour is transparent."""
    image = Image.fromarray(pixels)
    if mode == 'P':
        image.quantize(16).save(path, transparency=0, **options)
    else:
        image.convert(mode or image.mode).save(path, **options)


KINDS = {
    'grey.png': lambda path: saved(path, GREY),
    'grey.jpg': lambda path: saved(path, GREY),
    'grey16.png': lambda path: saved(path, DEEP[..., 0]),
    'grey16.tif': lambda path: saved(path, DEEP[..., 0]),
    'grey_alpha.png': lambda path: saved(path, np.dstack([GREY, GREY[:, ::-1]])),
    'palette.png': lambda path: saved(path, COLOURS, 'P'),
    'palette.gif': lambda path: saved(path, COLOURS, 'P'),
    'one_bit.png': lambda path: saved(path, GREY, '1'),
    'one_bit.tif': lambda path: saved(path, GREY, '1'),
    'rgb.bmp': lambda path: saved(path, COLOURS),
    'rgb.jpg': lambda path: saved(path, COLOURS),
    'rgb.webp': lambda path: saved(path, COLOURS),
    'rgba.png': lambda path: saved(path, np.dstack([COLOURS, GREY])),
    'rgba.tif': lambda path: saved(path, np.dstack([COLOURS, GREY])),
    'cmyk.jpg': lambda path: saved(path, COLOURS, 'CMYK'),
    'rgb16.png': lambda path: cv2.imwrite(str(path), DEEP),
    'rgb16.tif': lambda path: cv2.imwrite(str(path), DEEP),
    'turned.jpg': lambda path: saved(path, COLOURS, exif=TURNED),
    'turned.png': lambda path: saved(path, COLOURS, exif=TURNED),
    'frames.gif': lambda path: saved(
        path, COLOURS, save_all=True, append_images=[Image.fromarray(COLOURS[::-1])]
    ),
    'pages.tif': lambda path: saved(
        path, COLOURS, save_all=True, append_images=[Image.fromarray(COLOURS[::-1])]
    ),
}


@pytest.mark.parametrize('name', KINDS)
@pytest.mark.parametrize('options', [{}, {'color_type': 'grayscale'}, {'to_float32': True}])
def test_training_and_validation_load_the_same(tmp_path, name, options):
    path = tmp_path / name
    KINDS[name](path)
    loaded = LoadCheckedImage(**options)({'img_path': str(path)})
    expected = LoadImageFromFile(**options)({'img_path': str(path)})
    assert loaded['img'].dtype == expected['img'].dtype
    np.testing.assert_array_equal(loaded['img'], expected['img'])
    for key in ('img_shape', 'ori_shape'):
        assert loaded[key] == expected[key] == loaded['img'].shape[:2]


@pytest.mark.parametrize('name', ['grey16.png', 'grey16.tif', 'rgb16.png', 'rgb16.tif'])
def test_deep_images_keep_their_greys(tmp_path, name):
    KINDS[name](tmp_path / name)
    pixels = load(tmp_path / name)['img'].astype(int)
    shallow = COLOURS if name.startswith('rgb') else GREY[..., None]
    assert np.abs(pixels - shallow).max() <= 1


def test_an_image_of_another_size_than_its_annotations(tmp_path):
    path = tmp_path / 'turned.jpg'
    KINDS['turned.jpg'](path)
    results = {'img_path': str(path), 'height': 48, 'width': 64}
    with pytest.raises(DataError, match=r'is 64 x 48 pixels .* say 48 x 64: .*color_ignore_or'):
        LoadCheckedImage()(dict(results))
    loaded = LoadCheckedImage(color_type='color_ignore_orientation')(dict(results))
    assert loaded['img'].shape == (48, 64, 3)
    assert LoadCheckedImage()(results | {'height': 64, 'width': 48})['img'].shape == (64, 48, 3)


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
@pytest.mark.parametrize('part', [0.0, 0.02, 0.3, 0.6, 0.9])
def test_truncated_images_are_named(tmp_path, suffix, part):
    path = tmp_path / f'truncated{suffix}'
    content = encoded(suffix)
    path.write_bytes(content[: int(part * len(content))])
    refusal(path)


def test_a_truncated_jpeg_is_named_whatever_the_decoder_makes_of_it(tmp_path, monkeypatch):
    """OpenCV before 4.11 makes an image of it."""
    path = tmp_path / 'truncated.jpg'
    content = encoded('.jpg')
    monkeypatch.setattr('mmcv.imfrombytes', lambda *args, **kwargs: GREY)
    path.write_bytes(content)
    assert load(path)['img'] is GREY
    path.write_bytes(content + b'\0' * 8)  # whole, and more
    assert load(path)['img'] is GREY
    path.write_bytes(content[: len(content) // 2])
    assert 'truncated' in refusal(path)


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
    loader = LoadCheckedImage(to_float32=True, imdecode_backend='pillow')
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
