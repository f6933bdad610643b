"""The checks that the command-line tools make before work starts, and how they report."""

import argparse

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper
from small_runner import small_runner
from torch.utils.data import DataLoader

from kat_mm.command_line import run_reporting_errors
from kat_mm.errors import ConfigError, DataError
from kat_mm.openmmlab import config_checks, configs


def reported(error, capsys):
    """What the tools print for an error."""

    def fail():
        raise error

    with pytest.raises(SystemExit) as end:
        run_reporting_errors(fail)
    assert end.value.code == 1
    out, err = capsys.readouterr()
    assert not out
    return err


class Broken:
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise self.error


@pytest.mark.parametrize(
    'wrap', ['{}', 'class `Outer` in mmdet/outer.py: class `KAT` in kat_mm/models/kat.py: {}']
)
def test_an_error_is_one_line(capsys, wrap):
    error = ConfigError(wrap.format("unknown arch 'a: b'"))
    assert reported(error, capsys) == "error: unknown arch 'a: b'\n"


@pytest.mark.parametrize(
    'error', [DataError('image x.png cannot be read: y'), AssertionError('failed to load image: x')]
)
def test_an_error_in_a_loader_worker_is_one_line(capsys, error):
    batches = iter(DataLoader(Broken(error), num_workers=1))
    with pytest.raises(type(error)) as caught:
        next(batches)
    batches._shutdown_workers()  # now: the garbage collector would wait five seconds for them
    assert 'Traceback' in str(caught.value)
    assert reported(caught.value, capsys) == f'error: {error}\n'


@pytest.mark.parametrize('error', [ValueError('bug'), AssertionError(), AssertionError('bug')])
def test_other_errors_pass(error):
    def fail():
        raise error

    with pytest.raises(type(error)) as caught:
        run_reporting_errors(fail)
    assert caught.value is error


def test_no_error_ends_well():
    run_reporting_errors(lambda: None)


class TestCheckpoint:
    WEIGHTS = {'weight': torch.zeros(1000)}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def path(self, tmp_path):
        self.path = str(tmp_path / 'file.pth')

    def refused(self, content=None, resume=False):
        if content is not None:
            torch.save(content, self.path)
        with pytest.raises(DataError) as caught:
            config_checks.check_checkpoint(self.path, resume)
        assert str(caught.value).startswith(f'checkpoint {self.path} ')
        assert '\n' not in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize('new_format', [True, False])
    @pytest.mark.parametrize('content', [WEIGHTS, {'state_dict': WEIGHTS, 'meta': {'epoch': 3}}])
    def test_weights(self, content, new_format):
        torch.save(content, self.path, _use_new_zipfile_serialization=new_format)
        config_checks.check_checkpoint(self.path)

    @pytest.mark.parametrize(
        'content', [[1, 2], torch.zeros(3), {}, {'epoch': 1}, {'state_dict': None}, 'text']
    )
    def test_no_weights(self, content):
        assert 'holds no weights' in self.refused(content)

    def test_missing(self):
        assert self.refused().endswith('does not exist')

    @pytest.mark.parametrize('content', [b'', b'PK', b'\x80\x02', b'text\nand text', b'\0' * 99])
    def test_damaged(self, content):
        with open(self.path, 'wb') as file:
            file.write(content)
        assert 'cut short, damaged or no checkpoint' in self.refused()

    @pytest.mark.parametrize('new_format', [True, False])
    @pytest.mark.parametrize('part', [0.1, 0.5, 0.99])
    def test_truncated(self, part, new_format):
        torch.save(self.WEIGHTS, self.path, _use_new_zipfile_serialization=new_format)
        with open(self.path, 'r+b') as file:
            file.truncate(int(part * file.seek(0, 2)))
        assert 'cut short, damaged or no checkpoint' in self.refused()

    def test_refused_types_are_named(self):
        message = self.refused({**self.WEIGHTS, 'args': argparse.Namespace(rate=1)})
        assert 'it holds argparse.Namespace, which is refused as it could run code' in message
        message = self.refused({**self.WEIGHTS, 'names': np.array(['a', 'b'])})
        assert "a numpy dtype 'U1' in a checkpoint is refused" in message

    def test_remote_files_are_left_to_mm(self):
        for path in ('https://example.org/a.pth', 'open-mmlab://resnet50', 's3:b/a.pth'):
            config_checks.check_checkpoint(path)

    def test_resume(self, tmp_path):
        options = {'save_best': 'rising/score', 'rule': 'greater'}
        small_runner(tmp_path, length=1, checkpoint=options).train()
        config_checks.check_checkpoint(str(tmp_path / 'epoch_1.pth'), resume=True)
        self.path = str(tmp_path / 'best_rising_score_epoch_1.pth')
        assert (
            f'has no optimizer. To start from its weights: --cfg-options load_from={self.path}'
            in (self.refused(resume=True))
        )
        assert 'has no message_hub, meta, optimizer' in self.refused(self.WEIGHTS, resume=True)


class TestData:
    @pytest.fixture(autouse=True)
    def data(self, tmp_path):
        self.root = tmp_path / 'coco'
        for folder in ('annotations', 'train2017'):
            (self.root / folder).mkdir(parents=True)
        (self.root / 'annotations' / 'train.json').touch()

    def dataset(self, **changes):
        return {
            'type': 'CocoDataset',
            'data_root': f'{self.root}/',
            'ann_file': 'annotations/train.json',
            'data_prefix': {'img': 'train2017/', 'seg': None},
            **changes,
        }

    def check(self, dataset, **others):
        config_checks.check_data(
            Config({'train_dataloader': {'dataset': dataset}, **others}), 'train', 'val'
        )

    def test_complete(self):
        self.check(self.dataset())
        self.check(self.dataset(data_prefix=None, ann_file=''))
        self.check(self.dataset(ann_file=str(self.root / 'annotations' / 'train.json')))

    def test_nothing_to_check(self):
        self.check({'type': 'Numbers'})
        self.check(self.dataset(data_root=None, ann_file='gone.json'))
        self.check(self.dataset(data_root='s3://bucket/coco'))
        config_checks.check_data(Config({'train_dataloader': None}), 'train')

    @pytest.mark.parametrize(
        'change',
        [{'ann_file': 'gone.json'}, {'data_prefix': {'img': 'gone'}}, {'data_root': 'gone'}],
    )
    def test_missing(self, change):
        with pytest.raises(DataError, match=r'data set not found in .*gone.* does not exist\. '):
            self.check(self.dataset(**change))

    @pytest.mark.parametrize(
        'wrap',
        [
            lambda dataset: {'type': 'RepeatDataset', 'dataset': dataset},
            lambda dataset: {'type': 'ConcatDataset', 'datasets': [{'type': 'Numbers'}, dataset]},
        ],
    )
    def test_missing_in_a_wrapper(self, wrap):
        self.check(wrap(self.dataset()))
        with pytest.raises(DataError, match='gone'):
            self.check(wrap(self.dataset(ann_file='gone.json')))

    def test_missing_in_an_evaluator(self):
        metric = {'type': 'CocoMetric', 'ann_file': str(self.root / 'gone.json')}
        for evaluator in (metric, [{'type': 'Other'}, metric]):
            with pytest.raises(DataError, match=r'val_evaluator\.ann_file: .*gone\.json'):
                self.check(self.dataset(), val_evaluator=evaluator)


@pytest.mark.parametrize(
    'init_cfg',
    [
        {'type': 'Pretrained', 'checkpoint': 'gone.pth'},
        [
            {'type': 'TruncNormal', 'layer': 'Linear'},
            {'type': 'Pretrained', 'checkpoint': 'gone.pth'},
        ],
    ],
)
def test_missing_pretrained_weights(init_cfg):
    config = Config({'model': {'backbone': {'type': 'KAT', 'init_cfg': init_cfg}}})
    with pytest.raises(DataError, match=r'pretrained weights gone\.pth not found.*\.init_cfg=None'):
        config_checks.check_pretrained(config)
    config.model.backbone.init_cfg = {'type': 'Pretrained', 'checkpoint': 'https://a.org/b.pth'}
    config_checks.check_pretrained(config)
    config.model.backbone.init_cfg = None
    config_checks.check_pretrained(config)
    config.model.pretrained = 'gone.pth'  # as mmseg has it
    with pytest.raises(DataError, match=r'gone\.pth not found.*model\.pretrained=None'):
        config_checks.check_pretrained(config)


@pytest.mark.skipif(torch.cuda.is_available(), reason='with a GPU, mixed precision stays on')
@pytest.mark.parametrize('kind', ['AmpOptimWrapper', AmpOptimWrapper])
def test_full_precision_without_a_gpu(capsys, kind):
    wrapper = {'type': kind, 'dtype': 'float16', 'loss_scale': 'dynamic'}
    kept = {'optimizer': {'type': 'AdamW'}, 'clip_grad': {'max_norm': 1}}
    config = Config({'optim_wrapper': {**wrapper, **kept}})
    configs.use_full_precision_on_cpu(config)
    assert config.optim_wrapper == {'type': 'OptimWrapper', **kept}
    assert 'no GPU' in ''.join(capsys.readouterr())
    configs.use_full_precision_on_cpu(config)
    configs.use_full_precision_on_cpu(Config({}))
    assert not ''.join(capsys.readouterr())
