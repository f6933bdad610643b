import json

import cv2
import numpy as np

from kat_mm.datasets.comparison import draw_comparisons
from kat_mm.datasets.digit_scenes import SceneSpec
from kat_mm.datasets.writer import write_dataset


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
        title_height = 22
        image, truth, predicted = np.split(cv2.imread(str(path))[title_height:], 3, axis=1)
        assert np.array_equal(truth, predicted)  # unlikely predictions are left out
        assert not np.array_equal(image, truth)
