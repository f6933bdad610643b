import numpy as np
import pytest

from kat_mm.digits.source_digits import (
    CLASSES,
    SPLITS,
    draw_glyph,
    glyph,
    load_digits,
    split_indices,
)


def test_splits_are_disjoint_complete_and_stratified():
    images, classes = load_digits()
    assert images.shape == (1797, 8, 8)
    assert images.min() == 0
    assert images.max() == 1
    train, val = (np.concatenate(split_indices(split)) for split in SPLITS)
    assert sorted([*train, *val]) == list(range(1797))
    for label in range(len(CLASSES)):
        in_train, in_val = (split_indices(split)[label] for split in SPLITS)
        assert (classes[in_train] == label).all()
        assert (classes[in_val] == label).all()
        assert 0.18 < len(in_val) / (len(in_train) + len(in_val)) < 0.21


def test_no_image_is_in_both_splits():
    images, _ = load_digits()
    train, val = (
        {image.tobytes() for image in images[np.concatenate(split_indices(split))]}
        for split in SPLITS
    )
    assert not train & val


def test_unknown_split():
    with pytest.raises(ValueError, match=r"unknown split 'test'; choose one of train, val"):
        split_indices('test')


@pytest.mark.parametrize('height', [8, 20.5, 48, 300])
def test_glyph_has_the_height_asked_for(height):
    for index in range(0, 1797, 97):
        alpha = draw_glyph(glyph(index), height, 0)
        assert alpha.dtype == np.float32
        assert alpha.min() >= 0
        assert 0.9 < alpha.max() <= 1
        rows = np.flatnonzero((alpha > 0.5).any(1))
        assert abs(rows[-1] - rows[0] + 1 - height) <= 1.5 + 0.01 * height
        assert len(alpha) - (rows[-1] - rows[0] + 1) <= 4


def test_positive_angles_turn_counter_clockwise():
    one = glyph(split_indices('train')[1][0])
    left, right = draw_glyph(one, 60, 25), draw_glyph(one, 60, -25)

    def lean(alpha):
        """Return how far the top lies to the right of the bottom, in pixels."""
        rows = np.array_split(alpha, 2)
        top, bottom = ((half.sum(0) * np.arange(half.shape[1])).sum() / half.sum() for half in rows)
        return top - bottom

    assert lean(left) < lean(right) - 10
