"""Damaged images and diverging losses end a training run with one line that names them."""

import json
import re
import shutil

import cv2
import pytest
from tool_runs import Run

from kat_mm.openmmlab.config_checks import check_checkpoint
from kat_mm.weights.reading import read_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture
def damaged(data, tmp_path):
    """damaged(suffix, content): a copy of the data set in which one image has this content."""

    def damage(suffix, change):
        root = shutil.copytree(data, tmp_path / 'digit_scenes')
        annotations = root / 'annotations' / 'train.json'
        coco = json.loads(annotations.read_text())
        entry = coco['images'][5]
        path = root / 'images' / 'train' / entry['file_name']
        content = cv2.imencode(suffix, cv2.imread(str(path)))[1].tobytes()
        path.unlink()
        path = path.with_suffix(suffix)
        path.write_bytes(change(content))
        entry['file_name'] = path.name
        annotations.write_text(json.dumps(coco))
        return root, path

    return damage


@pytest.fixture
def train_on(run_tool, flat_config, tmp_path):
    def train(root, workers, *options) -> Run:
        return run_tool(
            tmp_path,
            *('train.py', flat_config, '--cfg-options', *options),
            f'train_dataloader.dataset.data_root={root}',
            f'train_dataloader.num_workers={workers}',
            f'train_dataloader.persistent_workers={workers > 0}',
        )

    return train


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
@pytest.mark.parametrize(
    'change',
    [lambda content: content[: len(content) // 2], lambda content: b'\0' * len(content)],
    ids=['truncated', 'overwritten'],
)
def test_damaged_image(damaged, train_on, workers, suffix, change):
    root, path = damaged(suffix, change)
    message = train_on(root, workers).error()
    assert message.startswith(f'image {path} cannot be read: ')


@pytest.mark.parametrize('workers', [0, 2])
def test_damaged_image_with_the_loader_of_mm(damaged, train_on, workers):
    root, path = damaged('.png', lambda content: content[:100])
    loader = 'train_dataloader.dataset.pipeline.0.type=LoadImageFromFile'
    assert train_on(root, workers, loader).error() == f'failed to load image: {path}'


def test_whole_images_of_both_kinds(damaged, train_on):
    root, _ = damaged('.jpg', lambda content: content)
    options = ('train_cfg.max_epochs=1', 'train_cfg.val_interval=9')
    train_on(root, 0, *options).ended_well()


@pytest.mark.parametrize('iteration', [2, 5])
def test_diverging_loss(run_tool, breaking_config, tmp_path, iteration):
    command = (tmp_path, 'train.py', breaking_config, '--work-dir', 'run')
    message = run_tool(*command, NAN_AT=str(iteration)).error()
    terms = r'loss nan, loss_rpn_cls \d.*, loss_rpn_bbox \d.*, loss_cls \d.*, loss_mask nan; '
    assert re.match(rf'the loss is not finite at iteration {iteration}: {terms}', message)
    saved = list((tmp_path / 'run').glob('*.pth*'))
    if iteration < 4:
        assert 'no checkpoint was saved yet' in message
        assert not saved
    else:
        assert f'the last good checkpoint is {tmp_path}/run/epoch_1.pth. ' in message
        assert [path.name for path in saved] == ['epoch_1.pth']
        check_checkpoint(str(saved[0]), resume=True)
        weights = read_checkpoint(saved[0])['state_dict']
        assert all(weight.isfinite().all() for weight in weights.values())
        # Training goes on from there once the cause is gone.
        run = run_tool(*command, '--resume', '--cfg-options', 'train_cfg.max_epochs=2')
        assert 'resumed epoch: 1' in run.ended_well().stdout


def test_a_learning_rate_far_too_high(run_tool, flat_config, tmp_path):
    """Here every prediction and loss term becomes NaN."""
    options = ('optim_wrapper.optimizer.lr=1e10', 'optim_wrapper.clip_grad=None')
    run = run_tool(
        tmp_path,
        *('train.py', flat_config, '--cfg-options', *options, 'param_scheduler=None'),
    )
    assert run.error().startswith('the loss is not finite at iteration 2: loss nan, ')
