import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kat_mm.digits.backgrounds import background
from kat_mm.digits.scenes import (
    MAX_GRAIN,
    MIN_CONTRAST,
    MIN_VISIBLE,
    SceneSpec,
    render_scene,
)
from kat_mm.digits.source_digits import SPLITS, load_digits, split_indices


def assert_same(a, b):
    for field in ('image', 'instances', 'labels', 'sources', 'visible'):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), strict=True)


def assert_consistent(scene, spec, split):
    """The parts of a scene fit each other and the specification."""
    count = len(scene.labels)
    assert spec.min_digits <= count <= spec.max_digits
    assert scene.image.shape == (*spec.size, 3)
    assert scene.image.dtype == np.uint8
    assert scene.instances.shape == spec.size
    assert sorted(set(np.unique(scene.instances)) - {0}) == list(range(1, count + 1))
    assert (load_digits()[1][scene.sources] == scene.labels).all()
    assert np.isin(scene.sources, np.concatenate(split_indices(split))).all()
    assert (scene.visible >= MIN_VISIBLE).all()
    assert (scene.visible <= 1).all()
    assert count == 0 or scene.visible[-1] == 1  # nothing lies in front of the last one
    label_map = scene.label_map()
    assert label_map.dtype == np.uint8
    np.testing.assert_array_equal(label_map > 0, scene.instances > 0)
    for label in range(10):
        same = [scene.mask(k) for k in np.flatnonzero(scene.labels == label)]
        union = np.any(same, axis=0) if same else np.zeros(spec.size, bool)
        np.testing.assert_array_equal(label_map == label + 1, union)


def test_same_arguments_give_the_same_scene():
    assert_same(render_scene(SceneSpec(), 'train', 5), render_scene(SceneSpec(), 'train', 5))


def test_every_argument_changes_the_scene():
    image = render_scene(SceneSpec(), 'train', 5).image
    others = [
        render_scene(SceneSpec(), 'train', 6),
        render_scene(SceneSpec(), 'val', 5),
        render_scene(SceneSpec(seed=1), 'train', 5),
    ]
    assert all((image != other.image).any() for other in others)


def test_rendering_leaves_the_global_random_state_alone():
    np.random.seed(0)  # noqa: NPY002 - this is the state in question
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    render_scene(SceneSpec(), 'train', 0)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_any_size_and_number_of_digits(data):
    height, width = data.draw(st.integers(32, 180)), data.draw(st.integers(32, 180))
    capacity = SceneSpec((height, width)).capacity
    most = data.draw(st.integers(1, capacity))
    least = data.draw(st.integers(0, most))
    spec = SceneSpec((height, width), data.draw(st.integers(0, 2**40)), least, most)
    split = data.draw(st.sampled_from(SPLITS))
    assert_consistent(render_scene(spec, split, data.draw(st.integers(0, 10**6))), spec, split)


@pytest.mark.parametrize('size', [(32, 32), (33, 97), (128, 128), (200, 64), (320, 533)])
def test_a_full_image_holds_all_digits(size):
    capacity = SceneSpec(size).capacity
    spec = SceneSpec(size, min_digits=capacity, max_digits=capacity)
    for index in range(3):
        assert_consistent(render_scene(spec, 'train', index), spec, 'train')


def test_digits_scale_with_the_image():
    spec = SceneSpec((800, 1333), max_digits=3)
    scene = render_scene(spec, 'val', 0)
    assert_consistent(scene, spec, 'val')
    for k in range(len(scene.labels)):
        rows = np.flatnonzero(scene.mask(k).any(1))
        assert 100 < rows[-1] - rows[0] < 400


def test_scenes_vary_as_specified():
    scenes = [render_scene(SceneSpec(), 'train', index) for index in range(120)]
    counts = np.bincount([len(scene.labels) for scene in scenes], minlength=7)
    assert counts[:2].tolist() == [0, 0]
    assert (counts[2:] > 10).all()
    labels = np.bincount(np.concatenate([scene.labels for scene in scenes]), minlength=10)
    assert (labels > 20).all()
    # Overlap is common, and is not the rule.
    hidden = np.mean(np.concatenate([scene.visible for scene in scenes]) < 0.98)
    assert 0.05 < hidden < 0.4


@pytest.mark.parametrize('size', [(32, 48), (128, 128)])
def test_all_that_is_drawn_is_annotated(size):
    """Outside the masks and their soft outline the image is the background and its noise."""
    spec = SceneSpec(size, seed=3)
    for index in range(20):
        scene = render_scene(spec, 'val', index)
        # The background is the first thing that the scene's own random stream makes.
        behind = background(np.random.default_rng([3, SPLITS.index('val'), index]), *size)
        distance = np.linalg.norm(scene.image.astype(float) - behind, axis=2)
        reach = np.ones((7, 7), np.uint8)
        masks = (scene.instances > 0).astype(np.uint8)
        outside = cv2.dilate(masks, reach) == 0
        assert distance[outside].max() < 5 * MAX_GRAIN * np.sqrt(3)
        # And inside each mask something stands out from the background.
        for k in range(len(scene.labels)):
            assert np.median(distance[scene.mask(k)]) > 0.5 * MIN_CONTRAST


@pytest.mark.parametrize(
    ('arguments', 'error', 'text'),
    [
        ({'size': (31, 128)}, ValueError, '31x128.* at least 32 pixels'),
        ({'size': (128, 0)}, ValueError, '128x0.* at least 32 pixels'),
        ({'size': (128.0, 128)}, TypeError, 'height must be an integer, not 128.0'),
        ({'size': 128}, TypeError, r'size must be \(height, width\), not 128'),
        ({'seed': -1}, ValueError, 'seed must be 0 or more, not -1'),
        ({'seed': '0'}, TypeError, "seed must be an integer, not '0'"),
        ({'min_digits': -1}, ValueError, 'cannot hold -1 to 6 digits'),
        ({'min_digits': 4, 'max_digits': 3}, ValueError, 'cannot hold 4 to 3 digits'),
        ({'min_digits': 0, 'max_digits': 0}, ValueError, 'max_digits >= 1'),
        ({'max_digits': 14}, ValueError, 'max_digits=14 digits do not fit.* at most 11'),
        ({'max_digits': True}, TypeError, 'max_digits must be an integer, not True'),
    ],
)
def test_wrong_specification(arguments, error, text):
    with pytest.raises(error, match=text):
        SceneSpec(**arguments)


def test_wrong_scene():
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        render_scene(SceneSpec(), 'dev', 0)
    with pytest.raises(ValueError, match='index must be 0 or more, not -1'):
        render_scene(SceneSpec(), 'val', -1)
