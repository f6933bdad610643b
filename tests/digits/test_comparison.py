import json
import shutil

import cv2
import numpy as np

from kat_mm.digits.comparison import draw_comparisons
from kat_mm.digits.contact_sheet import PALETTE
from kat_mm.digits.scenes import SceneSpec
from kat_mm.digits.writer import write_dataset


def panels(path):
    """Image, ground truth and prediction of a picture, without their titles."""
    title_height = 22
    return np.split(cv2.imread(str(path))[title_height:], 3, axis=1)


def test_perfect_predictions_look_like_the_ground_truth(tmp_path):
    root = tmp_path / 'data'
    write_dataset(root, SceneSpec(size=(64, 64)), train=1, val=3)
    coco = json.loads((root / 'annotations' / 'val.json').read_text())
    results = [dict(annotation, score=1.0) for annotation in coco['annotations']]
    results += [dict(annotation, score=0.1, category_id=1) for annotation in coco['annotations']]
    (tmp_path / 'results.json').write_text(json.dumps(results))
    paths = draw_comparisons(root, 'val', tmp_path / 'results.json', tmp_path / 'out', count=2)
    assert [path.name for path in paths] == ['000000.png', '000001.png']
    for path in paths:
        image, truth, predicted = panels(path)
        assert np.array_equal(truth, predicted)  # unlikely predictions are left out
        assert not np.array_equal(image, truth)


def test_label_maps(tmp_path):
    root = tmp_path / 'data'
    write_dataset(root, SceneSpec(size=(64, 64)), train=1, val=2)
    predictions = shutil.copytree(root / 'labels' / 'val', tmp_path / 'predictions')
    labels = cv2.imread(str(predictions / '000001.png'), cv2.IMREAD_UNCHANGED)
    labels[:32] = 3  # class 2
    cv2.imwrite(str(predictions / '000001.png'), labels)
    right, wrong = draw_comparisons(root, 'val', predictions, tmp_path / 'out')
    _, truth, predicted = panels(right)
    assert np.array_equal(truth, predicted)
    _, truth, predicted = panels(wrong)
    different = (truth != predicted).any(2)
    assert (predicted[different] == PALETTE[2][::-1]).all()
    assert different.any()
    assert not different[len(different) // 2 :].any()
