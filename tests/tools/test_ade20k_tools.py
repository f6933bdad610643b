"""Training and testing UPerNet on a folder in ADE20K's layout."""

import re
import shutil

import numpy as np
import pytest
from mmengine.config import Config
from mmseg.datasets import ADE20KDataset
from PIL import Image
from tool_runs import ROOT

pytestmark = pytest.mark.slow

# More images to train on than are checked before training.
SIZES = {'training': [(60, 80), (80, 60)] * 12, 'validation': [(50, 90), (72, 64), (100, 70)]}
# What the pixels of a value look like; 0 is 'other', 150 the last class.
COLOURS = {0: (0, 0, 0), 1: (250, 20, 20), 8: (20, 250, 20), 150: (20, 20, 250)}
ITERATIONS = 20


@pytest.fixture(scope='module')
def ade20k(tmp_path_factory):
    """A small data set in ADE20K's layout, of coloured squares."""
    root = tmp_path_factory.mktemp('ade') / 'ADEChallengeData2016'
    rng = np.random.default_rng(0)
    for split, sizes in SIZES.items():
        for folder in ('images', 'annotations'):
            (root / folder / split).mkdir(parents=True)
        for number, (height, width) in enumerate(sizes):
            name = f'ADE_{split.removesuffix("ing").removesuffix("idation")}_{number:08d}'
            blocks = rng.choice(list(COLOURS), (5, 5))
            labels = np.kron(blocks, np.ones((20, 20)))[:height, :width].astype(np.uint8)
            image = np.zeros((height, width, 3), np.uint8)
            for value, colour in COLOURS.items():
                image[labels == value] = colour
            Image.fromarray(image).save(root / 'images' / split / f'{name}.jpg')
            Image.fromarray(labels).save(root / 'annotations' / split / f'{name}.png')
    return root


def shrink(config):
    arch = dict(embed_dims=16, num_layers=4, num_heads=2)
    config.model.backbone.update(arch=arch, out_indices=(0, 1, 2, 3), init_cfg=None)
    config.model.neck.update(in_channels=[16] * 4, out_channels=16)
    config.model.decode_head.update(in_channels=[16] * 4, channels=16)
    config.model.auxiliary_head.update(in_channels=16, channels=16)
    config.model.data_preprocessor.size = (64, 64)
    pipeline = config.train_dataloader.dataset.pipeline
    pipeline[2].scale, pipeline[3].crop_size = (128, 64), (64, 64)
    for split in ('val', 'test'):
        config[f'{split}_dataloader'].dataset.pipeline[1].scale = (128, 64)


@pytest.fixture(scope='module')
def config(ade20k, tmp_path_factory):
    """The config of KAT-T with a smaller model and smaller crops, in a file without a base."""
    config = Config.fromfile(ROOT / 'configs' / 'ade20k' / 'kat_tiny_upernet_ade20k.py')
    shrink(config)
    for split in ('train', 'val', 'test'):
        loader = config[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(ade20k)
    config.train_cfg.update(max_iters=ITERATIONS, val_interval=ITERATIONS)
    config.optim_wrapper.optimizer.lr, config.param_scheduler = 0.01, None
    config.default_hooks.logger.interval = 1
    path = tmp_path_factory.mktemp('configs') / 'ade20k.py'
    path.write_text(''.join(f'{name} = {value!r}\n' for name, value in config.to_dict().items()))
    return path


@pytest.fixture(scope='module')
def trained(config, run_tool, tmp_path_factory):
    """A training run: (run, work dir)."""
    work_dir = tmp_path_factory.mktemp('ade20k')
    run = run_tool(work_dir, 'train.py', config, '--work-dir', work_dir)
    return run.ended_well(), work_dir


@pytest.fixture
def test_tool(config, trained, run_tool, tmp_path):
    """Runs tools/test.py on the trained model and returns its output and the label maps."""

    def test(name, *options):
        command = ('test.py', config, trained[1] / 'iter_20.pth', '--out', name, *options)
        run = run_tool(tmp_path, *command).ended_well()
        return run.stdout, {path.name: read(path) for path in (tmp_path / name).iterdir()}

    return test


def read(path):
    return np.asarray(Image.open(path))


def mean_iou(maps, folder):
    """The mean over the classes that occur, in percent; pixels of value 0 are left out."""
    pairs = [(labels, read(folder / name)) for name, labels in maps.items()]
    predicted, truth = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    predicted, truth = predicted[truth > 0], truth[truth > 0]
    return 100 * np.mean(
        [
            np.sum((predicted == c) & (truth == c)) / np.sum((predicted == c) | (truth == c))
            for c in np.union1d(predicted, truth)
        ]
    )


def logged(text, metric):
    return float(re.findall(rf'{metric}: ([\d.]+)', text)[-1])


def test_training(trained):
    run, work_dir = trained
    losses = re.findall(r'loss: ([\d.]+)  decode\.loss_ce: .*  aux\.loss_ce: ', run.stdout)
    assert len(losses) == ITERATIONS
    assert float(losses[-1]) < float(losses[0])
    assert logged(run.stdout, 'mIoU') > 30
    assert (work_dir / 'iter_20.pth').is_file()


def test_label_maps_are_those_that_the_evaluation_server_takes(test_tool, trained, ade20k):
    """8-bit grey PNG files named and sized as the images, with values from 1 to 150."""
    output, maps = test_tool('maps')
    truth = {path.name: read(path) for path in (ade20k / 'annotations/validation').iterdir()}
    assert {name: labels.shape for name, labels in maps.items()} == {
        name: labels.shape for name, labels in truth.items()
    }
    assert all(labels.dtype == np.uint8 for labels in maps.values())
    assert all(labels.min() >= 1 and labels.max() <= 150 for labels in maps.values())
    assert logged(output, 'mIoU') == logged(trained[0].stdout, 'mIoU')
    assert logged(output, 'mIoU') == pytest.approx(
        mean_iou(maps, ade20k / 'annotations/validation'), abs=0.006
    )


def test_sliding_windows(test_tool, ade20k):
    """A window that holds the image gives what the whole image does; smaller ones do not."""
    _, whole = test_tool('whole')
    _, large = test_tool('large', '--cfg-options', 'model.test_cfg.mode=slide')
    output, small = test_tool(
        'small',
        *('--cfg-options', 'model.test_cfg.mode=slide'),
        *('model.test_cfg.crop_size=(48,48)', 'model.test_cfg.stride=(32,32)'),
    )
    for name in whole:
        np.testing.assert_array_equal(whole[name], large[name])
        assert small[name].shape == whole[name].shape
    assert any((whole[name] != small[name]).any() for name in whole)
    assert logged(output, 'mIoU') == pytest.approx(
        mean_iou(small, ade20k / 'annotations/validation'), abs=0.006
    )


def test_test_time_augmentation(test_tool, ade20k):
    output, maps = test_tool('augmented', '--tta')
    assert logged(output, 'mIoU') == pytest.approx(
        mean_iou(maps, ade20k / 'annotations/validation'), abs=0.006
    )
    _, alone = test_tool('alone')
    assert any((maps[name] != alone[name]).any() for name in maps)


def test_images_without_label_maps(config, trained, run_tool, ade20k, tmp_path):
    """As those of ADE20K's test set."""
    (tmp_path / 'test_set.py').write_text(
        f'_base_ = {str(config)!r}\n'
        "test_dataloader = dict(dataset=dict(data_prefix=dict(_delete_=True, img_path='images/"
        "validation')))\n"
        'test_evaluator = dict(format_only=True)\n'
    )
    command = ('test.py', 'test_set.py', trained[1] / 'iter_20.pth', '--out', 'maps')
    run_tool(tmp_path, *command).ended_well()
    names = {path.stem for path in (tmp_path / 'maps').iterdir()}
    assert names == {path.stem for path in (ade20k / 'images/validation').iterdir()}


def test_overlays_have_the_colours_of_the_data_set(test_tool, ade20k, tmp_path):
    """Ground truth on the left and prediction on the right, laid over the image."""
    _, maps = test_tool('maps', '--show-dir', 'pictures')
    pictures = sorted((tmp_path / 'pictures').rglob('*.png'))
    assert len(pictures) == len(maps)
    palette = np.array([(0, 0, 0), *ADE20KDataset.METAINFO['palette']])
    for picture, (name, predicted) in zip(pictures, sorted(maps.items()), strict=True):
        image_path = ade20k / 'images/validation' / name.replace('.png', '.jpg')
        assert image_path.name in picture.name
        truth = read(ade20k / 'annotations/validation' / name)
        for half, labels in zip(
            np.split(read(picture), 2, axis=1), (truth, predicted), strict=True
        ):
            expected = 0.2 * read(image_path) + 0.8 * palette[labels]
            difference = np.abs(half - expected)[labels > 0]
            assert np.median(difference) < 2  # names of classes are written over it


@pytest.fixture
def broken(ade20k, tmp_path):
    """broken(map, array): the data set with one label map replaced, and that map's path."""

    def broken(name, labels):
        root = shutil.copytree(ade20k, tmp_path / ade20k.name)
        path = root / 'annotations' / name
        Image.fromarray(np.asarray(labels, np.uint8)).save(path)
        return root, path

    return broken


def options(root):
    return (
        '--cfg-options',
        *(f'{split}_dataloader.dataset.data_root={root}' for split in ('train', 'val', 'test')),
    )


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_a_label_map_that_does_not_fit(config, trained, broken, run_tool, tmp_path, tool):
    """Before work starts, be it of the data for validation."""
    root, path = broken('validation/ADE_val_00000001.png', np.full((72, 64), 151))
    checkpoint = [trained[1] / 'iter_20.pth'] if tool == 'test.py' else []
    message = run_tool(tmp_path, tool, config, *checkpoint, *options(root)).error()
    assert message.startswith(f'label map {path} holds the value 151: classes are 1 to 150, ')
    assert not (tmp_path / 'work_dirs').exists()


@pytest.mark.parametrize('workers', [0, 1])
def test_a_label_map_that_does_not_fit_among_many(config, broken, run_tool, tmp_path, workers):
    root, path = broken('training/ADE_train_00000022.png', np.zeros((60, 81)))
    workers = f'train_dataloader.num_workers={workers}'
    message = run_tool(tmp_path, 'train.py', config, *options(root), workers).error()
    assert message.startswith(f'label map {path} has the shape (60, 81), its image {root}/images/')
    assert (tmp_path / 'work_dirs').exists()


def test_no_data_set(run_tool, config, tmp_path):
    root = 'data/ade/ADEChallengeData2016'
    message = run_tool(tmp_path, 'train.py', config, *options(root)).error()
    assert message.startswith(f"data set not found in '{root}': {root} does not exist. Unpack ")
    assert 'ADEChallengeData2016.zip in data/ade (' in message


def test_no_images(run_tool, config, ade20k, tmp_path):
    suffix = 'val_dataloader.dataset.img_suffix=.jpeg'
    message = run_tool(tmp_path, 'train.py', config, *options(ade20k), suffix).error()
    assert message.startswith(f'{ade20k}/images/validation holds no image *.jpeg. ')
