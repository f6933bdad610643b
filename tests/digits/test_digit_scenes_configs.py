"""The two base configs give right samples and scores through mmdet's and mmseg's own classes."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, DefaultScope
from pycocotools import mask as coco_mask

from kat_mm.digits.contact_sheet import BACKGROUND, PALETTE
from kat_mm.digits.source_digits import CLASSES, SPLITS
from kat_mm.openmmlab.compat import install

CONFIGS = Path(__file__).parents[2] / 'configs' / '_base_'


def load_config(kind, data_root):
    """Return a base config that reads ``data_root``."""
    config = Config.fromfile(CONFIGS / f'digit_scenes_{kind}.py')
    for split in (*SPLITS, 'test'):
        config[f'{split}_dataloader'].dataset.data_root = str(data_root)
        if split != 'train' and kind == 'instance':
            config[f'{split}_evaluator'].ann_file = str(data_root / 'annotations' / 'val.json')
    return config


@pytest.fixture
def mmdet_scope():
    install()
    import mmdet.datasets
    import mmdet.evaluation  # noqa: F401 - fills the registries

    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


@pytest.fixture
def mmseg_scope():
    install()
    import mmseg.datasets
    import mmseg.evaluation  # noqa: F401 - fills the registries

    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


def test_names_and_colours_are_those_of_the_library():
    instance = Config.fromfile(CONFIGS / 'digit_scenes_instance.py').metainfo
    assert tuple(instance.classes) == CLASSES
    assert tuple(map(tuple, instance.palette)) == PALETTE
    semantic = Config.fromfile(CONFIGS / 'digit_scenes_semantic.py').metainfo
    assert tuple(semantic.classes) == ('background', *CLASSES)
    assert tuple(map(tuple, semantic.palette)) == (BACKGROUND, *PALETTE)


def test_no_code_of_ours_is_needed_for_detection():
    text = (CONFIGS / 'digit_scenes_instance.py').read_text()
    assert 'custom_imports' not in text
    assert 'import' not in text.split()


@pytest.mark.parametrize('split', SPLITS)
def test_mmdet_samples(digit_scenes, mmdet_scope, split):
    dataset = DATASETS.build(load_config('instance', digit_scenes)[f'{split}_dataloader'].dataset)
    coco = json.loads((digit_scenes / 'annotations' / f'{split}.json').read_text())
    assert len(dataset) == len(coco['images'])
    assert dataset.metainfo['classes'] == CLASSES
    for i, entry in enumerate(coco['images']):
        sample = dataset[i]
        assert sample['data_samples'].img_id == entry['id']
        image = cv2.imread(str(digit_scenes / 'images' / split / entry['file_name']))
        np.testing.assert_array_equal(sample['inputs'].permute(1, 2, 0).numpy(), image)

        instances = sample['data_samples'].gt_instances
        truth = [a for a in coco['annotations'] if a['image_id'] == entry['id']]
        assert len(instances) == len(truth)
        assert instances.labels.tolist() == [a['category_id'] - 1 for a in truth]
        boxes = np.array([a['bbox'] for a in truth])
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_array_equal(instances.bboxes.tensor.numpy(), boxes)
        masks = np.stack([coco_mask.decode(a['segmentation']) for a in truth])
        np.testing.assert_array_equal(instances.masks.to_ndarray(), masks)
        assert len(sample['data_samples'].ignored_instances) == 0


def test_coco_metric_gives_full_marks_to_the_ground_truth(digit_scenes, mmdet_scope):
    config = load_config('instance', digit_scenes)
    dataset = DATASETS.build(config.val_dataloader.dataset)
    metric = METRICS.build(config.val_evaluator)
    metric.dataset_meta = dataset.metainfo
    for i in range(len(dataset)):
        sample = dataset[i]['data_samples']
        truth = sample.gt_instances
        prediction = {
            'bboxes': truth.bboxes.tensor,
            'labels': truth.labels,
            'scores': truth.labels * 0 + 1.0,
            'masks': truth.masks.to_tensor(bool, 'cpu'),
        }
        metric.process({}, [{**sample.metainfo, 'pred_instances': prediction}])
    scores = metric.evaluate(len(dataset))
    assert scores['coco/bbox_mAP'] == pytest.approx(1)
    assert scores['coco/segm_mAP'] == pytest.approx(1)


@pytest.mark.parametrize('split', SPLITS)
def test_mmseg_samples(digit_scenes, mmseg_scope, split):
    dataset = DATASETS.build(load_config('semantic', digit_scenes)[f'{split}_dataloader'].dataset)
    names = sorted(path.name for path in (digit_scenes / 'images' / split).iterdir())
    assert len(dataset) == len(names)
    assert dataset.metainfo['classes'] == ('background', *CLASSES)
    for i, name in enumerate(names):
        sample = dataset[i]
        image = cv2.imread(str(digit_scenes / 'images' / split / name))
        np.testing.assert_array_equal(sample['inputs'].permute(1, 2, 0).numpy(), image)
        labels = cv2.imread(str(digit_scenes / 'labels' / split / name), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(sample['data_samples'].gt_sem_seg.data[0].numpy(), labels)
        assert sample['data_samples'].reduce_zero_label is False


def test_iou_metric_gives_full_marks_to_the_ground_truth(digit_scenes, mmseg_scope):
    config = load_config('semantic', digit_scenes)
    dataset = DATASETS.build(config.val_dataloader.dataset)
    metric = METRICS.build(config.val_evaluator)
    metric.dataset_meta = dataset.metainfo
    for i in range(len(dataset)):
        labels = {'data': dataset[i]['data_samples'].gt_sem_seg.data}
        metric.process({}, [{'pred_sem_seg': labels, 'gt_sem_seg': labels}])
    assert metric.evaluate(len(dataset))['mIoU'] == pytest.approx(100)
