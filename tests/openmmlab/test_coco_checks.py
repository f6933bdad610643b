"""What would crash, mislabel or miscount in a COCO data set is told before training."""

import json
import re
import shutil
from copy import deepcopy
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config

import kat_mm.openmmlab  # noqa: F401
from kat_mm.errors import UserError
from kat_mm.openmmlab import coco_checks, config_checks

CLASSES = ('cat', 'dog', 'hen')
SQUARE = [4.0, 4, 20, 4, 20, 20, 4, 20]


def coco():
    images = [dict(id=i, file_name=f'{i}.png', height=32, width=40) for i in range(1, 4)]
    common = dict(bbox=[4, 4, 16, 16], area=256, iscrowd=0, segmentation=[SQUARE])
    annotations = [
        dict(id=i, image_id=1 + i % 3, category_id=1 + i % 3, **deepcopy(common))
        for i in range(1, 7)
    ]
    categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)]
    return dict(images=images, annotations=annotations, categories=categories)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp('coco')
    for number in range(1, 4):
        cv2.imwrite(str(root / f'{number}.png'), np.zeros((32, 40, 3), np.uint8))
    return root


@pytest.fixture
def config(images, tmp_path):
    """The config of a whole data set, whose files a test may spoil."""
    root = shutil.copytree(images, tmp_path / 'coco')
    steps = [dict(type='LoadAnnotations', with_mask=True)]

    def loader(split, **settings):
        (root / f'{split}.json').write_text(json.dumps(coco()))
        dataset = dict(type='CocoDataset', data_root=str(root), ann_file=f'{split}.json')
        dataset |= dict(data_prefix=dict(img=''), metainfo=dict(classes=CLASSES), pipeline=steps)
        return dict(dataset=dataset | settings)

    metric = dict(type='CocoMetric', metric=['bbox', 'segm'], ann_file=str(root / 'val.json'))
    return Config(
        dict(
            default_scope='mmdet',
            train_dataloader=loader('train', filter_cfg=dict(filter_empty_gt=True, min_size=8)),
            val_dataloader=loader('val', test_mode=True),
            val_evaluator=metric,
        )
    )


def check(config):
    config_checks.check_data(config, 'train', 'val')


def refusal(config):
    with pytest.raises(UserError) as caught:
        check(config)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def edit(config, split, change):
    dataset = config[f'{split}_dataloader'].dataset
    path = f'{dataset.data_root}/{dataset.ann_file}'
    content = json.loads(Path(path).read_text())
    change(content)
    Path(path).write_text(json.dumps(content))
    return path


def change(where, **fields):
    """Returns an edit of the first entry of a list; a field of None is removed."""

    def edit(content):
        entry = content[where][0]
        entry.update(fields)
        for name in [name for name, value in fields.items() if value is None]:
            del entry[name]

    return edit


def rename(content):
    for category in content['categories']:
        category['name'] += ' (part)'


def turn(content):
    content['categories'].reverse()


MISTAKES = {
    'other names': (rename, r'none of the classes .*\(cat, dog, hen\) .*cat \(part\)'),
    'another order': (turn, r'the order of the classes .*\(cat, dog, hen\).*\(hen, dog, cat\)'),
    'one name less': (change('categories', name='cow'), 'has no category cat, which is among'),
    'a name twice': (
        lambda c: c['categories'].append(dict(id=9, name='dog')),
        "two categories have the name 'dog'",
    ),
    'no name': (change('categories', name=None), 'category with id 1 has no name'),
    'image without height': (change('images', height=None), 'image with id 1 has no height'),
    'image without name': (change('images', file_name=None), 'id 1 has no file_name'),
    'image without id': (change('images', id=None), r'images\[0\] has no id'),
    'size as text': (change('images', width='40'), "height and width are (32, '40')"),
    'another size': (change('images', width=41), 'is 32 x 40 pixels .* say 32 x 41'),
    'image twice': (change('images', id=2), 'the id 2 occurs 2 times in images'),
    'absent image': (change('images', file_name='0.png'), '1 of 3 images are missing, first'),
    'annotation twice': (change('annotations', id=2), 'the id 2 occurs 2 times in annotations'),
    'category twice': (change('categories', id=2), 'the id 2 occurs 2 times in categories'),
    'no area': (change('annotations', area=None), 'annotation 1 has no area'),
    'no box': (change('annotations', bbox=None), 'annotation 1 has no bbox'),
    'no image': (change('annotations', image_id=None), 'annotation 1 has no image_id'),
    'no mask': (change('annotations', segmentation=None), 'annotation 1 has no segmentation'),
    'three numbers': (change('annotations', bbox=[1, 2, 3]), 'must be four numbers'),
    'not a number': (change('annotations', bbox=[1, 2, 3, float('nan')]), 'must be four numbers'),
    'flat polygon': (change('annotations', segmentation=SQUARE), 'neither a list of polygons'),
    'mask of another size': (
        change('annotations', segmentation=dict(size=[9, 9], counts=[81])),
        r'the size of its mask is \[9, 9\]',
    ),
    'unknown category': (change('annotations', category_id=7), 'category_id 7, which is none'),
    'other ids of images': (
        lambda c: [a.update(image_id=str(a['image_id'])) for a in c['annotations']],
        "the first has image_id '2', the first image the id 1",
    ),
    'no categories': (lambda c: c.pop('categories'), 'it has no list of categories'),
}


def test_what_is_right_passes(config, monkeypatch):
    read = []
    original = coco_checks.read_coco
    monkeypatch.setattr(
        config_checks, 'read_coco', lambda path: read.append(path) or original(path)
    )
    monkeypatch.setattr(coco_checks.CocoFile, 'warn', None)
    check(config)
    assert len(read) == 2  # the evaluator's file is that of the data set


@pytest.mark.parametrize('split', ['train', 'val'])
@pytest.mark.parametrize('case', MISTAKES)
def test_mistakes_are_named(config, case, split):
    spoil, message = MISTAKES[case]
    path = edit(config, split, spoil)
    text = refusal(config)
    assert path in text or 'image' in text
    assert message in text or re.search(message, text), text


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (change('annotations', iscrowd=None), 'annotation 1 has no iscrowd'),
        (change('annotations', segmentation=[[4, 4, 9, 9]]), 'a segmentation of 2 points ends'),
        (change('annotations', segmentation=[[]]), 'a segmentation of 0 points ends'),
        (change('annotations', id='a'), "the id 'a' of an annotation is not a number"),
    ],
)
def test_what_an_evaluator_would_trip_over(config, spoil, message):
    edit(config, 'val', spoil)
    assert message in refusal(config)


@pytest.mark.parametrize('content', ['', '[]', '{"images": 3}', '{'])
def test_other_files(config, content):
    path = edit(config, 'train', lambda _: None)
    Path(path).write_text(content)
    assert refusal(config).startswith(f'annotations {path}: it ')


def test_a_byte_order_mark(config):
    path = edit(config, 'val', lambda _: None)
    Path(path).write_text(json.dumps(coco()), encoding='utf-8-sig')
    assert 'it begins with a byte order mark' in refusal(config)


def spoil_many(content):
    first, second, third, fourth, fifth, _ = content['annotations']
    first['bbox'] = [4, 4, 0.5, 16]
    second['bbox'] = [50, 4, 16, 16]
    third['area'] = 0
    fourth['segmentation'] = [[1, 1, 2, 2]]
    fifth['image_id'] = 77


def test_what_mmdet_leaves_out_is_counted(config, monkeypatch):
    told = []
    monkeypatch.setattr(coco_checks.CocoFile, 'warn', lambda self, message: told.append(message))
    edit(config, 'train', spoil_many)
    check(config)
    assert told == [
        'mmdet leaves out 1 of images that it lacks, 3 with boxes that are empty or outside, '
        '1 whose polygons have no area, of 6 annotations'
    ]


def test_categories_that_are_no_class(config, monkeypatch):
    told = []
    monkeypatch.setattr(coco_checks.CocoFile, 'warn', lambda self, message: told.append(message))
    edit(config, 'train', lambda content: content['categories'].append(dict(id=9, name='cow')))
    check(config)
    assert [message[-10:] for message in told] == ['round: cow']


def test_images_that_are_not_trained_on_may_be_absent(config):
    def add(content):
        content['images'].append(dict(id=9, file_name='empty.png', height=32, width=40))

    edit(config, 'train', add)
    check(config)
    edit(config, 'val', add)
    assert 'empty.png' in refusal(config)


@pytest.mark.parametrize(
    'wrap',
    [
        lambda d: dict(type='RepeatDataset', times=2, dataset=d),
        lambda d: dict(type='ConcatDataset', datasets=[d, d]),
        lambda d: dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=d),
        lambda d: dict(type='MultiImageMixDataset', pipeline=[], dataset=d),
    ],
)
def test_wrapped_data_sets(config, wrap):
    edit(config, 'train', turn)
    config.train_dataloader.dataset = wrap(config.train_dataloader.dataset)
    assert 'the order of the classes' in refusal(config)


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        ('cat', r"classes='cat' must be different names"),
        (('cat', 'cat', 'dog'), 'must be different names'),
        (('dog', 'cat', 'hen'), r'the order of the classes of the data set \(dog, cat, hen\)'),
        (('x', *CLASSES), 'it has no category x'),
    ],
)
def test_classes_of_a_data_set(config, classes, message):
    config.train_dataloader.dataset.metainfo = dict(classes=classes)
    assert re.search(message, refusal(config))


def test_training_and_validation_have_the_same_classes(config):
    config.val_dataloader.dataset.metainfo = dict(classes=CLASSES[:2])
    assert 'the classes of val_dataloader (CocoDataset) (cat, dog) are not those' in refusal(config)


def test_an_evaluator_with_a_file_of_its_own(config, tmp_path):
    content = coco()
    turn(content)
    (tmp_path / 'other.json').write_text(json.dumps(content))
    config.val_evaluator = [config.val_evaluator, dict(config.val_evaluator)]
    config.val_evaluator[1].ann_file = str(tmp_path / 'other.json')
    assert 'the order of the classes of validation' in refusal(config)
    config.val_evaluator[1].sort_categories = True
    check(config)
    content['images'] = content['images'][:2]
    (tmp_path / 'other.json').write_text(json.dumps(content))
    assert 'lacks 1 of the images of val_dataloader, first that with id 3' in refusal(config)
