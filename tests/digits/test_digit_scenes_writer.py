import json
import os

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from kat_mm.digits import writer
from kat_mm.digits.contact_sheet import GAP, contact_sheet
from kat_mm.digits.scenes import SceneSpec, render_scene
from kat_mm.digits.source_digits import CLASSES, SPLITS
from kat_mm.digits.writer import read_stamp, write_dataset

SMALL = SceneSpec((40, 56), seed=7)


def files_of(root):
    """Return the bytes of every file below ``root`` by relative path."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


def load(root, split):
    return json.loads((root / 'annotations' / f'{split}.json').read_text())


def test_same_arguments_give_the_same_bytes(tmp_path):
    for name in ('a', 'b'):
        assert write_dataset(tmp_path / name, SMALL, train=3, val=2)
    a, b = files_of(tmp_path / 'a'), files_of(tmp_path / 'b')
    assert a == b
    assert sorted(a) == [
        'annotations/train.json',
        'annotations/val.json',
        'digit_scenes.json',
        *(f'images/train/{i:06d}.png' for i in range(3)),
        *(f'images/val/{i:06d}.png' for i in range(2)),
        *(f'labels/train/{i:06d}.png' for i in range(3)),
        *(f'labels/val/{i:06d}.png' for i in range(2)),
    ]


def test_scenes_do_not_depend_on_their_number(tmp_path):
    write_dataset(tmp_path / 'few', SMALL, train=2, val=1)
    write_dataset(tmp_path / 'many', SMALL, train=5, val=3)
    few, many = files_of(tmp_path / 'few'), files_of(tmp_path / 'many')
    assert all(many[name] == data for name, data in few.items() if name.endswith('.png'))
    for split in SPLITS:
        few, many = load(tmp_path / 'few', split), load(tmp_path / 'many', split)
        kept = {image['id'] for image in few['images']}
        assert few['annotations'] == [a for a in many['annotations'] if a['image_id'] in kept]


@pytest.mark.parametrize('split', SPLITS)
def test_annotations_agree_with_pixels(digit_scenes, split):
    coco = load(digit_scenes, split)
    assert [c['name'] for c in coco['categories']] == list(CLASSES)
    assert {'info', 'licenses', 'images', 'annotations', 'categories'} == set(coco)
    assert [a['id'] for a in coco['annotations']] == list(range(1, len(coco['annotations']) + 1))
    for entry in coco['images']:
        name = entry['file_name']
        scene = render_scene(SceneSpec(), split, entry['id'])
        image = cv2.imread(str(digit_scenes / 'images' / split / name))
        np.testing.assert_array_equal(image, scene.image)
        labels = cv2.imread(str(digit_scenes / 'labels' / split / name), cv2.IMREAD_UNCHANGED)
        assert labels.dtype == np.uint8
        assert labels.shape == image.shape[:2] == (entry['height'], entry['width'])

        painted = np.zeros_like(labels)
        of_image = [a for a in coco['annotations'] if a['image_id'] == entry['id']]
        assert len(of_image) == len(scene.labels)
        for annotation in of_image:
            mask = coco_mask.decode(annotation['segmentation']).astype(bool)
            assert not painted[mask].any()  # visible masks never overlap
            painted[mask] = annotation['category_id']
            rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            x, y, width, height = annotation['bbox']
            assert [x, y] == [cols[0], rows[0]]
            assert [x + width, y + height] == [cols[-1] + 1, rows[-1] + 1]
            assert annotation['area'] == mask.sum()
            assert annotation['iscrowd'] == 0
        np.testing.assert_array_equal(painted, labels)


def test_no_source_digit_is_in_both_splits(digit_scenes):
    train, val = (
        {annotation['source'] for annotation in load(digit_scenes, split)['annotations']}
        for split in SPLITS
    )
    assert train
    assert val
    assert not train & val


@pytest.mark.parametrize('iou_type', ['bbox', 'segm'])
def test_ground_truth_scores_full_marks_against_itself(digit_scenes, iou_type):
    truth = COCO(digit_scenes / 'annotations' / 'val.json')
    predictions = [
        {key: a[key] for key in ('image_id', 'category_id', 'bbox', 'segmentation')} | {'score': 1}
        for a in truth.dataset['annotations']
    ]
    evaluation = COCOeval(truth, truth.loadRes(predictions), iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)
    assert evaluation.stats[8] == pytest.approx(1)


def test_second_call_returns_at_once(tmp_path, monkeypatch):
    out = tmp_path / 'deep' / 'down' / 'scenes'
    assert write_dataset(out, SMALL, train=1, val=1)
    assert read_stamp(out) == {
        'version': writer.VERSION,
        'train': 1,
        'val': 1,
        'size': [40, 56],
        'seed': 7,
        'min_digits': 2,
        'max_digits': 6,
    }
    monkeypatch.setattr(writer, 'render_scene', lambda *args: pytest.fail('rendered again'))
    assert not write_dataset(out, SMALL, train=1, val=1)


def test_other_arguments_need_overwrite(tmp_path):
    out = tmp_path / 'scenes'
    write_dataset(out, SMALL, train=2, val=1)
    before = files_of(out)
    with pytest.raises(FileExistsError, match=r'train 2 instead of 1.*--overwrite'):
        write_dataset(out, SMALL, train=1, val=1)
    assert files_of(out) == before
    assert write_dataset(out, SMALL, train=1, val=1, overwrite=True)
    assert 'images/train/000001.png' not in files_of(out)
    assert os.listdir(tmp_path) == ['scenes']


def test_foreign_folders_are_never_replaced(tmp_path):
    for name, content in (('README', 'mine'), (writer.STAMP, 'not json'), (writer.STAMP, '[]')):
        out = tmp_path / 'coco'
        out.mkdir(exist_ok=True)
        (out / name).write_text(content)
        with pytest.raises(FileExistsError, match='not a digit-scenes data set'):
            write_dataset(out, SMALL, train=1, val=1, overwrite=True)
        assert (out / name).read_text() == content
    with pytest.raises(FileExistsError, match='not a digit-scenes data set'):
        write_dataset(tmp_path / 'coco' / 'README', SMALL, train=1, val=1, overwrite=True)


def test_an_empty_folder_is_filled(tmp_path):
    assert write_dataset(tmp_path, SMALL, train=1, val=0)
    assert load(tmp_path, 'val')['images'] == []


@pytest.mark.parametrize('interruption', [KeyboardInterrupt, OSError('disk full')])
def test_an_interrupted_run_leaves_what_was_there(tmp_path, monkeypatch, interruption):
    out = tmp_path / 'scenes'

    def interrupt(spec, split, index):
        if split == 'val':
            raise interruption
        return render_scene(spec, split, index)

    with monkeypatch.context() as patch:
        patch.setattr(writer, 'render_scene', interrupt)
        with pytest.raises((KeyboardInterrupt, OSError)):
            write_dataset(out, SMALL, train=1, val=1)
        assert os.listdir(tmp_path) == []

        patch.undo()
        write_dataset(out, SMALL, train=1, val=1)
        before = files_of(out)
        patch.setattr(writer, 'render_scene', interrupt)
        with pytest.raises((KeyboardInterrupt, OSError)):
            write_dataset(out, SMALL, train=3, val=1, overwrite=True)
    assert files_of(out) == before
    assert os.listdir(tmp_path) == ['scenes']


@pytest.mark.parametrize('seed', [7, 8])
def test_two_writers_at_once(tmp_path, monkeypatch, seed):
    """The slower one finds the other's data set: the same is welcome, another is not replaced."""
    out = tmp_path / 'scenes'

    def render(spec, split, index):
        if not out.exists():
            monkeypatch.setattr(writer, 'render_scene', render_scene)
            write_dataset(out, SceneSpec(SMALL.size, seed), train=1, val=1)
        return render_scene(spec, split, index)

    monkeypatch.setattr(writer, 'render_scene', render)
    if seed == SMALL.seed:
        assert not write_dataset(out, SMALL, train=1, val=1)
    else:
        with pytest.raises(FileExistsError, match='seed 8 instead of 7'):
            write_dataset(out, SMALL, train=1, val=1)
    assert read_stamp(out)['seed'] == seed
    assert os.listdir(tmp_path) == ['scenes']


def test_a_data_set_is_as_readable_as_its_folder(tmp_path):
    (tmp_path / 'plain').mkdir()
    write_dataset(tmp_path / 'scenes', SMALL, train=1, val=0)
    assert (tmp_path / 'scenes').stat().st_mode == (tmp_path / 'plain').stat().st_mode


@pytest.mark.parametrize(
    ('counts', 'error', 'text'),
    [
        ((-1, 5), ValueError, 'number of train scenes must be 0 or more, not -1'),
        ((5, -2), ValueError, 'number of val scenes must be 0 or more, not -2'),
        ((0, 0), ValueError, 'at least one scene'),
        ((1.5, 1), TypeError, 'number of train scenes must be an integer, not 1.5'),
    ],
)
def test_wrong_counts(tmp_path, counts, error, text):
    with pytest.raises(error, match=text):
        write_dataset(tmp_path / 'scenes', SMALL, *counts)
    assert os.listdir(tmp_path) == []


def test_progress_sees_every_scene(tmp_path):
    seen = []

    def progress(indices, split):
        for index in indices:
            seen.append((split, index))
            yield index

    write_dataset(tmp_path / 'scenes', SMALL, train=2, val=1, progress=progress)
    assert seen == [('train', 0), ('train', 1), ('val', 0)]


def test_contact_sheet(digit_scenes, tmp_path):
    sheet = contact_sheet(digit_scenes, 'val', scenes=5, columns=3)
    assert sheet.dtype == np.uint8
    assert sheet.shape[0] > 2 * 3 * 256
    assert 3 * 256 < sheet.shape[1] < 4 * 256
    # The second row leaves the first as it is.
    first_row = contact_sheet(digit_scenes, 'val', scenes=3, columns=3)[:-GAP]
    np.testing.assert_array_equal(first_row, sheet[: len(first_row)])

    write_dataset(tmp_path / 'scenes', SMALL, train=1, val=0)
    with pytest.raises(ValueError, match='no val scene'):
        contact_sheet(tmp_path / 'scenes', 'val')
    image = tmp_path / 'scenes' / 'images' / 'train' / '000000.png'
    image.write_bytes(image.read_bytes()[:100])
    with pytest.raises(ValueError, match=r'000000.png is not a readable image'):
        contact_sheet(tmp_path / 'scenes', 'train')
    image.unlink()
    with pytest.raises(FileNotFoundError, match=r'000000.png'):
        contact_sheet(tmp_path / 'scenes', 'train')
