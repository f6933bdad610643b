"""mmengine's checkpoints through `torch.load`: theirs are read, a pickle that runs code is not."""

import copy
import os
import pathlib
import pickle
from typing import ClassVar

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.optim import OneCycleLR
from mmengine.registry import DATASETS
from mmengine.runner import Runner, load_checkpoint

import kat_mm.openmmlab.compat
from kat_mm.errors import DataError
from kat_mm.openmmlab.compat import checkpoint_types


class Numbers(BaseDataset):
    METAINFO: ClassVar = {'weights': np.arange(6, dtype=np.float32).reshape(2, 3)}

    def load_data_list(self):
        return [{}] * 8

    def __getitem__(self, index):
        return {'inputs': torch.tensor([index / 8, 1 - index / 3])}


class Mean(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.extend(float(sample) for sample in data_samples)

    def compute_metrics(self, results):
        return {'mean': np.float64(np.mean(results))}


class Linear(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        output = self.linear(torch.stack(inputs))
        return {'loss': output.square().mean()} if mode == 'loss' else list(output)


def runner(work_dir, name, epochs, resume=False, hooks=()):
    loader = ConfigDict(
        batch_size=4,
        num_workers=0,
        dataset={'type': 'Numbers', 'metainfo': {'nested': {'key': 1}}},
        sampler={'type': 'DefaultSampler', 'shuffle': True},
    )
    has_gpu = torch.cuda.is_available()
    return Runner(
        Linear(),
        work_dir=str(work_dir),
        experiment_name=name,
        train_dataloader=loader,
        train_cfg={'by_epoch': True, 'max_epochs': epochs},
        val_dataloader=copy.deepcopy(loader),
        val_cfg={},
        val_evaluator=Evaluator([Mean(prefix='metric')]),
        optim_wrapper={
            'type': 'AmpOptimWrapper' if has_gpu else 'OptimWrapper',  # mmengine's AMP needs one
            'optimizer': {'type': 'SGD', 'lr': 0.1, 'momentum': 0.9},
        },
        param_scheduler=[
            {'type': 'LinearLR', 'start_factor': 0.1, 'by_epoch': False, 'end': 3},
            {'type': 'MultiStepLR', 'milestones': [1, 2]},
        ],
        default_hooks={
            'checkpoint': {'type': 'CheckpointHook', 'save_best': 'metric/mean', 'rule': 'less'},
            'logger': {'type': 'LoggerHook', 'interval': 1},
        },
        custom_hooks=[{'type': 'EMAHook'}, *hooks],
        resume=resume,
        randomness={'seed': 1},
        log_level='ERROR',
    )


class Look(Hook):
    """Keeps the state of the runner from before its first iteration."""

    def before_train_epoch(self, runner):
        if not hasattr(self, 'epoch'):
            self.epoch, self.iter = runner.epoch, runner.iter
            self.optimizer = copy.deepcopy(runner.optim_wrapper.state_dict())
            self.log_scalars = copy.deepcopy(runner.message_hub.log_scalars)
            self.runtime_info = copy.deepcopy(runner.message_hub.runtime_info)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A runner after two epochs of two iterations, and its folder of checkpoints."""
    work_dir = tmp_path_factory.mktemp('trained')
    DATASETS.register_module(module=Numbers)
    torch.manual_seed(0)
    first = runner(work_dir, 'first', epochs=2)
    first.train()
    yield first, work_dir
    DATASETS.module_dict.pop('Numbers')


@pytest.fixture
def forbidden():
    """torch.load as it is without the install."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.add_safe_globals(allowed)


@pytest.mark.usefixtures('forbidden')
def test_resume_fails_without_install(trained):
    checkpoint = trained[1] / 'epoch_2.pth'
    try:
        torch.load(checkpoint)
    except pickle.UnpicklingError:
        kat_mm.openmmlab.compat.install()
        torch.load(checkpoint)
    else:
        pytest.skip('this mmengine writes checkpoints that torch.load reads as it is')


def test_resume(trained):
    first, work_dir = trained
    look = Look()
    second = runner(work_dir, 'second', epochs=3, resume=True, hooks=[look])
    second.train()
    assert (look.epoch, look.iter) == (2, 4)
    assert (second.epoch, second.iter) == (3, 6)

    expected = first.optim_wrapper.state_dict()
    assert look.optimizer['param_groups'] == expected['param_groups']
    for index, state in expected['state'].items():
        momentum = look.optimizer['state'][index]['momentum_buffer']
        assert torch.equal(momentum, state['momentum_buffer'])

    resumed, written = look.log_scalars['train/loss'], first.message_hub.get_scalar('train/loss')
    assert type(resumed) is HistoryBuffer
    for own, other in zip(resumed.data, written.data, strict=True):
        assert type(own) is np.ndarray
        assert own.dtype == other.dtype
        np.testing.assert_array_equal(own, other)
    assert resumed.statistics('mean') == written.mean()
    for key in ('best_score', 'best_ckpt', 'last_ckpt'):
        assert look.runtime_info[key] == first.message_hub.get_info(key)
    # The history goes on where it stopped.
    assert len(second.message_hub.get_scalar('train/loss').data[0]) == 6


def test_everything_in_the_file_is_read(trained):
    path = trained[1] / 'epoch_2.pth'
    assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == []
    meta = torch.load(path)['meta']['dataset_meta']
    written = trained[0].train_dataloader.dataset.metainfo
    np.testing.assert_array_equal(meta['weights'], written['weights'])
    assert meta['weights'].dtype == np.float32
    assert meta['nested'] == written['nested'] == {'key': 1}
    assert type(meta['nested']) is ConfigDict
    # mmengine compares the data sets by their pickles, and warns when they differ.
    assert pickle.dumps(meta['weights']) == pickle.dumps(written['weights'])


@pytest.mark.parametrize('name', checkpoint_types._NUMBERS)
@pytest.mark.parametrize('order', ['<', '>'])
def test_numpy_numbers(tmp_path, name, order):
    dtype = np.dtype(name).newbyteorder(order)
    array = np.arange(12).reshape(3, 4).astype(dtype)
    values = {'c': array, 'fortran': np.asfortranarray(array), 'empty': array[:0]}
    torch.save({**values, 'scalar': array[1, 2], 'shared': array}, tmp_path / 'file.pth')
    loaded = torch.load(tmp_path / 'file.pth')
    for key, value in values.items():
        assert isinstance(loaded[key], np.ndarray)
        # numpy itself turns what it reads into the machine's byte order.
        assert loaded[key].dtype == np.dtype(name)
        np.testing.assert_array_equal(loaded[key], value)
    assert loaded['shared'] is loaded['c']
    assert loaded['scalar'] == array[1, 2]
    assert loaded['scalar'].dtype == array[1, 2].dtype


def test_numpy_1_names(tmp_path):
    path = tmp_path / 'file.pth'
    torch.save(np.arange(3), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    if b'numpy._core' not in content:
        pytest.skip('this numpy writes the old names itself')
    path.write_bytes(content.replace(b'numpy._core', b'numpy.core'))
    assert torch.load(path).tolist() == [0, 1, 2]


def test_read_arrays_are_saved_as_plain_arrays(tmp_path):
    torch.save({'array': np.arange(3)}, tmp_path / 'first.pth')
    torch.save(torch.load(tmp_path / 'first.pth'), tmp_path / 'second.pth')
    assert type(torch.load(tmp_path / 'second.pth', weights_only=False)['array']) is np.ndarray


@pytest.mark.parametrize('anneal', ['cos', 'linear'])
def test_one_cycle_scheduler(tmp_path, anneal):
    """The state of this scheduler holds a function."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
    config = {'eta_max': 0.1, 'total_steps': 10, 'anneal_strategy': anneal}
    torch.save(OneCycleLR(optimizer, **config).state_dict(), tmp_path / 'file.pth')
    scheduler = OneCycleLR(optimizer, **config)
    expected = scheduler.anneal_func
    scheduler.load_state_dict(torch.load(tmp_path / 'file.pth'))
    assert scheduler.anneal_func is expected


class Call:
    """Pickles as a call of `function`, and then a state to give to the result."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced

    def __call__(self):
        """Only here because pickle wants a function to be callable when it is written."""


def system(marker):
    return Call(os.system, f'touch {marker}')


def evaluation(marker):
    return Call(eval, f'open({str(marker)!r}, "w")')


def attribute(marker):
    return Call(Call(getattr, pathlib.Path, 'touch'), Call(pathlib.Path, str(marker)))


@pytest.mark.parametrize('attack', [system, evaluation, attribute])
@pytest.mark.parametrize('new_format', [True, False])
def test_code_is_refused(tmp_path, attack, new_format):
    path, marker = tmp_path / 'file.pth', tmp_path / 'marker'
    content = {'state_dict': {}, 'meta': attack(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path)
    with pytest.raises(DataError, match='refused as it could run code'):
        load_checkpoint(torch.nn.Linear(1, 1), str(path))
    assert not marker.exists()


def test_the_attacks_would_run_unrestricted(tmp_path):
    """So the test above tests the restriction, not a broken attack."""
    path = tmp_path / 'file.pth'
    for attack in (system, evaluation, attribute):
        marker = tmp_path / attack.__name__
        torch.save(attack(marker), path)
        torch.load(path, weights_only=False)
        assert marker.exists()


def test_a_history_buffer_brings_no_functions(tmp_path):
    path = tmp_path / 'file.pth'
    buffer = HistoryBuffer([1.0], [1])
    buffer._statistics_methods = {'mean': system}
    torch.save(buffer, path)
    with pytest.raises(pickle.UnpicklingError, match='system'):
        torch.load(path)
    buffer._statistics_methods = {'mean': torch.Size}  # which any file may name
    torch.save(buffer, path)
    assert torch.load(path).statistics('mean') == 1
    torch.save(Call(getattr, HistoryBuffer, 'update'), path)
    with pytest.raises(pickle.UnpicklingError, match=r"getattr.*'update'.*refused"):
        torch.load(path)


POINTERS = b'\x41' * 8


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (np.array([None]), "dtype 'O8'"),
        (np.zeros(1, [('field', 'f8')]), "dtype 'V8'"),
        (np.array(['text']), "dtype 'U4'"),
        (Call(np.ndarray, (1,), 'O'), 'numpy.ndarray directly'),
        (Call(getattr, np.ndarray, 'tofile'), 'getattr'),
        (
            Call(
                np._core.multiarray._reconstruct,
                *(np.ndarray, (0,), b'b'),
                state=(1, (1,), Call(np.dtype, 'f8', state=(3, '|', 0, 0, 0, 8, 8, 63)), 0, [None]),
            ),
            None,
        ),
        (
            Call(
                np._core.multiarray._reconstruct,
                *(np.ndarray, (0,), b'b'),
                state=(1, (1 << 40,), np.dtype('f8'), False, POINTERS),
            ),
            None,
        ),
        (Call(np._core.multiarray.scalar, np.dtype('f8'), b'short'), None),
    ],
)
def test_numpy_internals_are_out_of_reach(tmp_path, content, message):
    torch.save(content, tmp_path / 'file.pth')
    with pytest.raises((pickle.UnpicklingError, TypeError, ValueError), match=message):
        torch.load(tmp_path / 'file.pth')


def test_an_array_is_filled_once(tmp_path):
    array = checkpoint_types._new_array()
    state = (1, (1,), checkpoint_types._Dtype('f8'), False, POINTERS)
    array.__setstate__(state)
    with pytest.raises(pickle.UnpicklingError, match='twice'):
        array.__setstate__(state)
    with pytest.raises(pickle.UnpicklingError, match='twice'):
        array[:0].__setstate__(state)
