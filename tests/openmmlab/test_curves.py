"""The numbers and the picture of training runs."""

import json

import numpy as np
import pytest
from PIL import Image
from small_runner import small_runner

from kat_mm.errors import DataError
from kat_mm.openmmlab.curves import plot_training, read_scalars


def write(work_dir, name, *records, end='\n'):
    folder = work_dir / name / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, records)) + end)


def train(step, loss=1.0):
    return {'loss': loss, 'loss_cls': loss / 2, 'epoch': 1 + step // 10, 'step': step}


def val(step, score=0.5):
    return {'coco/bbox_mAP': score, 'coco/segm_mAP_50': score, 'step': step}


def steps(records):
    return [record['step'] for record in records]


def test_records_of_a_run(tmp_path):
    write(tmp_path, '20250101_000000', train(10), train(20), val(1), train(30), train(40), val(2))
    training, validation = read_scalars(tmp_path)
    assert steps(training) == [10, 20, 30, 40]
    assert validation == [val(1), val(2)]


def test_a_resumed_run_replaces_what_it_repeats(tmp_path):
    write(tmp_path, '20250101_000000', train(10), val(1), train(20), train(30))
    write(tmp_path, '20250102_000000', train(15, 2.0), val(2, 0.7), train(25, 2.0))
    training, validation = read_scalars(str(tmp_path))
    assert training == [train(10), train(15, 2.0), train(25, 2.0)]
    assert validation == [val(1), val(2, 0.7)]


def test_a_run_from_the_start_replaces_a_longer_one(tmp_path):
    write(tmp_path, '20250101_000000', train(10), val(1), train(20), val(2), train(30), val(3))
    write(tmp_path, '20250102_000000', train(10, 2.0), val(1, 0.7))
    assert read_scalars(tmp_path) == ([train(10, 2.0)], [val(1, 0.7)])


def test_the_line_that_a_killed_run_was_writing_is_skipped(tmp_path):
    write(tmp_path, '20250101_000000', train(10), train(20), end='\n{"loss": 1.0, "st')
    write(tmp_path, '20250102_000000', end='')
    assert steps(read_scalars(tmp_path)[0]) == [10, 20]


@pytest.mark.parametrize('records', [[], [val(1)]])
def test_nothing_logged(tmp_path, records):
    if records:
        write(tmp_path, '20250101_000000', *records)
    for call in (read_scalars, lambda path: plot_training(path, path / 'curves.png')):
        with pytest.raises(DataError, match=f'{tmp_path} has no training log'):
            call(tmp_path)
    assert not list(tmp_path.glob('*.png'))


def are_coloured(picture):
    """Whether there are lines, which alone are coloured, in a picture's left and right half."""
    halves = np.array_split(np.asarray(picture.convert('RGB')).astype(int), 2, axis=1)
    return [bool((np.ptp(half, axis=2) > 60).any()) for half in halves]


def test_picture(tmp_path):
    records = [train(step, 4 * 0.97**step) for step in range(1, 40)]
    write(tmp_path, '20250101_000000', *records, *(val(epoch, epoch / 5) for epoch in range(1, 5)))
    png = tmp_path / 'new' / 'curves.png'
    plot_training(tmp_path, png)
    picture = Image.open(png)
    assert picture.format == 'PNG'
    assert picture.size == (1200, 480)
    assert are_coloured(picture) == [True, True]

    # The picture shows the numbers: others give another one, and the same give the same.
    plot_training(tmp_path, tmp_path / 'again.png')
    assert np.array_equal(picture, Image.open(tmp_path / 'again.png'))
    write(tmp_path, '20250102_000000', train(39, 3.0))
    plot_training(tmp_path, tmp_path / 'other.png')
    assert not np.array_equal(picture, Image.open(tmp_path / 'other.png'))


@pytest.mark.filterwarnings('error')
def test_picture_without_validation(tmp_path):
    write(tmp_path, '20250101_000000', train(10), train(20))
    plot_training(tmp_path, tmp_path / 'curves.png')
    assert are_coloured(Image.open(tmp_path / 'curves.png')) == [True, False]


def test_a_loss_that_became_nan_is_drawn_up_to_there(tmp_path):
    write(tmp_path, '20250101_000000', train(10), train(20), train(30, float('nan')))
    plot_training(tmp_path, tmp_path / 'curves.png')
    assert are_coloured(Image.open(tmp_path / 'curves.png'))[0]


@pytest.mark.parametrize(('by_epoch', 'length'), [(True, 2), (False, 8)])
def test_logs_of_a_real_run(tmp_path, by_epoch, length):
    small_runner(tmp_path, length=length, by_epoch=by_epoch).train()
    training, validation = read_scalars(tmp_path)
    assert steps(training) == list(range(1, 9))
    assert all({'loss', 'loss_a', 'loss_b', 'memory'} <= set(record) for record in training)
    assert ('epoch' in training[0]) == by_epoch
    assert steps(validation) == ([1, 2] if by_epoch else [3, 6, 8])
    plot_training(tmp_path, tmp_path / 'curves.png')
