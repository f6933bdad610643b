"""Label maps that do not fit are refused by name; the others load as mmseg loads them."""

import re

import numpy as np
import pytest
from mmcv.transforms import Compose
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image

from kat_mm.errors import DataError
from kat_mm.openmmlab.batches.loading import LoadCheckedImage, LoadCheckedLabelMap

CLASSES, SIZE = 5, (6, 8)


@pytest.fixture
def sample(tmp_path):
    """sample(labels, **settings): what mmseg's data sets hand to the pipeline."""

    def sample(labels, **settings):
        image = tmp_path / 'image.png'
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(image)
        path = tmp_path / 'labels.png'
        if labels is not None:
            Image.fromarray(labels).save(path)
        paths = dict(img_path=str(image), seg_map_path=str(path))
        return {**paths, 'seg_fields': [], 'reduce_zero_label': False, 'label_map': None} | settings

    return sample


def load(sample):
    return Compose([LoadCheckedImage(), LoadCheckedLabelMap(CLASSES)])(dict(sample))


def refusal(sample):
    with pytest.raises(DataError) as caught:
        load(sample)
    message = str(caught.value)
    assert message.startswith(f'label map {sample["seg_map_path"]} ')
    assert '\n' not in message
    return message


def labels_of(*values):
    return np.resize(np.array(values, np.uint8), SIZE)


@pytest.mark.parametrize(
    ('values', 'settings'),
    [
        (range(CLASSES), {}),
        ([0, 4, 255], {}),
        ([0, 1, CLASSES, 255], {'reduce_zero_label': True}),
        ([0, 1, 2, 6, 255], {'label_map': {0: 1, 1: 0, 2: 255, 6: 2}}),
        ([0, 1, 3, 7, 255], {'label_map': {0: 4, 2: 255, 6: 0}, 'reduce_zero_label': True}),
    ],
)
@pytest.mark.parametrize('mode', ['L', 'P', 'I;16'])
def test_label_maps_load_as_mmseg_loads_them(sample, values, settings, mode):
    labels = labels_of(*values)
    given = sample(labels.astype(np.uint16) if mode == 'I;16' else labels, **settings)
    if mode == 'P':
        picture = Image.fromarray(labels)
        picture.putpalette(bytes(range(256)) * 3)
        picture.save(given['seg_map_path'])
    assert Image.open(given['seg_map_path']).mode == mode
    loaded = load(given)
    expected = LoadAnnotations()({**given, 'seg_fields': []})
    np.testing.assert_array_equal(loaded['gt_seg_map'], expected['gt_seg_map'])
    assert loaded['gt_seg_map'].dtype == expected['gt_seg_map'].dtype
    assert loaded['seg_fields'] == ['gt_seg_map']


@pytest.mark.parametrize(
    ('labels', 'settings', 'reason'),
    [
        (labels_of(0, 5), {}, '5: classes are 0 to 4, and 255 is ignored'),
        (
            labels_of(0, 5, 6),
            {'reduce_zero_label': True},
            '6: classes are 1 to 5, and 0 and 255 are ignored',
        ),
        (labels_of(254), {'label_map': {0: 0, 1: 255}}, '254: classes are 0 to 4'),
        # In the eight bits of mmseg it would be a 1.
        (labels_of(0).astype(np.uint16) + 257, {}, '257: classes are 0 to 4'),
    ],
)
def test_a_value_outside_the_classes(sample, labels, settings, reason):
    message = refusal(sample(labels, **settings))
    assert f'holds the value {reason}' in message
    assert message.endswith('Correct the file, or num_classes throughout the config')


@pytest.mark.parametrize('shape', [(8, 6), (6, 7), (6, 8, 3)])
def test_another_size(sample, shape):
    message = refusal(sample(np.zeros(shape, np.uint8)))
    assert re.search(
        rf'has the shape {re.escape(str(shape))}, its image .*/image\.png has', message
    )
    assert '(6, 8) (height, width)' in message


def test_the_size_is_that_of_the_image_before_it_is_resized(sample):
    resized = LoadCheckedImage()(sample(labels_of(0))) | {'img_shape': (60, 80)}
    assert LoadCheckedLabelMap(CLASSES)(resized)['gt_seg_map'].shape == SIZE


@pytest.mark.parametrize('content', [None, b'', b'text', 'truncated'])
def test_a_file_that_cannot_be_read(sample, content):
    noise = np.random.default_rng(0).integers(0, CLASSES, SIZE, np.uint8)
    given = sample(noise if content == 'truncated' else None)
    if content == 'truncated':
        with open(given['seg_map_path'], 'r+b') as file:
            file.truncate(int(0.7 * file.seek(0, 2)))
    elif content is not None:
        with open(given['seg_map_path'], 'wb') as file:
            file.write(content)
    assert 'cannot be read: ' in refusal(given)


def test_an_image_alone(sample):
    given = sample(None)
    del given['seg_map_path']
    assert 'gt_seg_map' not in load(given)
