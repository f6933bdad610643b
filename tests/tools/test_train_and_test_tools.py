"""tools/train.py and then tools/test.py, for detection and segmentation."""

import pickle
import re

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from tool_runs import TOOLS, VAL, run_alone

from kat_mm.openmmlab import latest_checkpoint
from kat_mm.openmmlab.curves import read_scalars
from kat_mm.weights.reading import read_checkpoint

pytestmark = pytest.mark.slow


def scores(text, metric):
    """The values of a metric in a log, oldest first."""
    return [float(value) for value in re.findall(rf'{metric}: ([\d.]+)', text)]


def test_training_logs_progress(trained):
    run, _ = trained
    lines = [line for line in run.stdout.splitlines() if 'Epoch(train)' in line]
    assert len(lines) == 9
    for line in lines:
        assert re.search(r'eta: \d+:\d\d:\d\d', line)
        assert re.search(r'memory: [1-9]\d\d', line)
        assert re.search(r'loss: [1-9]\.\d+', line)


def test_training_warns_of_nothing(trained):
    assert 'Warning' not in trained[0].stderr


def test_training_leaves_checkpoints_and_scalars(trained):
    _, work_dir = trained
    assert latest_checkpoint(work_dir) == str(work_dir / 'epoch_3.pth')
    assert sorted(path.name for path in work_dir.glob('*.pth*')) == [
        'epoch_1.pth',
        'epoch_2.pth',
        'epoch_3.pth',
    ]
    training, validation = read_scalars(work_dir)
    assert [record['step'] for record in training] == list(range(1, 10))
    assert [record['step'] for record in validation] == [3]
    assert {'coco/bbox_mAP', 'coco/segm_mAP_50'} <= set(validation[0])


def test_options_reach_the_config(detection_config, run_tool, tmp_path):
    """The work dir keeps the config of the run; without --work-dir its name is the config's."""
    run_tool(
        tmp_path,
        'train.py',
        detection_config,
        *('--amp', '--auto-scale-lr', '--cfg-options', 'train_cfg.max_epochs=1'),
        *('model.backbone.drop_path_rate=0.0', 'auto_scale_lr.base_batch_size=8'),
        'train_cfg.val_interval=9',
    ).ended_well()
    work_dir = tmp_path / 'work_dirs' / 'detection'
    assert (work_dir / 'epoch_1.pth').is_file()
    config = Config.fromfile(work_dir / 'detection.py')
    assert config.model.backbone.drop_path_rate == 0
    assert config.auto_scale_lr == dict(enable=True, base_batch_size=8)
    if not torch.cuda.is_available():
        assert config.optim_wrapper.type == 'OptimWrapper'
    # A batch of 4 with a rate for 8.
    record = read_scalars(work_dir)[0][0]
    assert record['lr'] == pytest.approx(record['base_lr'] / 2)


@pytest.mark.parametrize('option', ['model.backbone.init_cfg.checkpoint', 'load_from'])
def test_training_starts_from_given_weights(trained, flat_config, run_tool, tmp_path, option):
    """At a learning rate of 0 they stay what they were."""
    given = read_checkpoint(trained[1] / 'epoch_3.pth')['state_dict']
    if option != 'load_from':
        given = {name: w for name, w in given.items() if name.startswith('backbone.')}
        pretrained = {name.removeprefix('backbone.'): w + 0.1 for name, w in given.items()}
        torch.save(pretrained, tmp_path / 'weights.pth')
        given = {f'backbone.{name}': w for name, w in pretrained.items()}
    else:
        torch.save({'state_dict': given}, tmp_path / 'weights.pth')
    run_tool(
        tmp_path,
        *('train.py', flat_config, '--work-dir', 'run', '--cfg-options', f'{option}=weights.pth'),
        *('optim_wrapper.optimizer.lr=0', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=9'),
        *(['model.backbone.init_cfg.type=Pretrained'] if option != 'load_from' else []),
    ).ended_well()
    weights = read_checkpoint(tmp_path / 'run' / 'epoch_1.pth')['state_dict']
    for name, weight in given.items():
        torch.testing.assert_close(weights[name], weight, msg=name)


@pytest.fixture(scope='module')
def tested(trained, detection_config, tmp_path_factory):
    """A run of tools/test.py alone: (run, work dir)."""
    work_dir = tmp_path_factory.mktemp('tested')
    run = run_alone(
        work_dir,
        TOOLS / 'test.py',
        *(detection_config, trained[1] / 'epoch_3.pth', '--work-dir', work_dir / 'test'),
        *('--out', work_dir / 'detections.pkl', '--show-dir', work_dir / 'pictures'),
    )
    return run.ended_well(), work_dir


def test_detections_are_saved(tested):
    with open(tested[1] / 'detections.pkl', 'rb') as file:
        detections = pickle.load(file)
    assert len(detections) == VAL
    for detection in detections:
        instances = detection['pred_instances']
        assert instances['bboxes'].shape == (5, 4)
        assert len(instances['masks']) == 5
        assert instances['masks'][0]['size'] == [64, 64]


def test_detections_are_drawn(tested, data):
    pictures = sorted((tested[1] / 'pictures').iterdir())
    assert [path.name for path in pictures] == [f'{i:06d}.png' for i in range(VAL)]
    for path in pictures:
        scene = np.asarray(Image.open(data / 'images' / 'val' / path.name))
        picture = np.asarray(Image.open(path))
        assert picture.shape == (64, 128, 3)  # ground truth and prediction side by side
        assert (picture[:, :64] != scene).any()
        assert (picture[:, 64:] != scene).any()


def test_testing_scores_as_training_did(trained, tested):
    for metric in ('coco/bbox_mAP', 'coco/segm_mAP'):
        assert scores(tested[0].stdout, metric) == scores(trained[0].stdout, metric)[-1:]


def test_detection_with_test_time_augmentation(trained, detection_config, run_tool, tmp_path):
    run_tool(
        tmp_path,
        'test.py',
        *(detection_config, trained[1] / 'epoch_3.pth', '--tta', '--out', 'detections.pkl'),
    ).ended_well()
    with open(tmp_path / 'detections.pkl', 'rb') as file:
        detections = pickle.load(file)
    instances = [detection['pred_instances'] for detection in detections]
    assert [len(i['bboxes']) for i in instances] == [len(i['masks']) for i in instances]
    assert max(len(i['bboxes']) for i in instances) > 5  # from two views with five each


@pytest.fixture(scope='module')
def trained_segmentor(segmentation_config, run_tool, tmp_path_factory):
    """A training run of a segmentor: (run, work dir)."""
    work_dir = tmp_path_factory.mktemp('segmentor')
    run = run_tool(work_dir, 'train.py', segmentation_config, '--work-dir', work_dir)
    return run.ended_well(), work_dir


def test_segmentation_trains(trained_segmentor):
    run, work_dir = trained_segmentor
    assert latest_checkpoint(work_dir) == str(work_dir / 'iter_2.pth')
    assert re.search(r'Iter\(train\) \[1/2\].* eta: .*memory: [1-9]', run.stdout)
    training, validation = read_scalars(work_dir)
    assert [record['step'] for record in training] == [1, 2]
    assert validation[0]['step'] == 2
    assert 0 <= validation[0]['mIoU'] <= 100


def test_segmentation_is_tested(trained_segmentor, segmentation_config, run_tool, tmp_path):
    trained, work_dir = trained_segmentor
    run = run_tool(
        tmp_path,
        'test.py',
        *(segmentation_config, work_dir / 'iter_2.pth'),
        *('--out', 'maps', '--show-dir', 'pictures'),
    ).ended_well()
    assert scores(run.stdout, 'mIoU') == scores(trained.stdout, 'mIoU')
    maps = sorted((tmp_path / 'maps').iterdir())
    assert [path.name for path in maps] == [f'{i:06d}.png' for i in range(VAL)]
    for path in maps:
        labels = np.asarray(Image.open(path))
        assert labels.shape == (64, 64)
        assert labels.max() <= 10
    pictures = list((tmp_path / 'pictures').rglob('*.png'))
    assert len(pictures) == VAL
    assert np.asarray(Image.open(pictures[0])).shape[2] == 3


def test_segmentation_with_test_time_augmentation(
    trained_segmentor, segmentation_config, run_tool, tmp_path
):
    checkpoint = trained_segmentor[1] / 'iter_2.pth'
    run = run_tool(tmp_path, 'test.py', segmentation_config, checkpoint, '--tta')
    assert len(scores(run.ended_well().stdout, 'mIoU')) == 1
