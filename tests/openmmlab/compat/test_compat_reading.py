"""mmengine's loaders with kat_mm's reader: its own checkpoints are read, code is not run.

Whatever mmengine alone can read or download, it does as ever.
"""

import copy
import hashlib
import io
import os
import pathlib
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar
from urllib.error import URLError
from urllib.request import urlopen

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
from mmengine.runner import CheckpointLoader, Runner, checkpoint
from safetensors.torch import save_file

from kat_mm.errors import DataError
from kat_mm.openmmlab.compat import checkpoint_types
from kat_mm.openmmlab.compat.reading import read_safely
from kat_mm.weights.unpickling import ALLOWED, load


def read(path, map_location='cpu'):
    return CheckpointLoader.load_checkpoint(str(path), map_location, logger='silent')


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


def test_torch_load_is_as_ever(trained):
    """It refuses mmengine's checkpoints, before and after kat_mm has read one."""
    allowed = set(torch.serialization.get_safe_globals())
    for _ in range(2):
        with pytest.raises(pickle.UnpicklingError):
            torch.load(trained[1] / 'epoch_2.pth')
        read(trained[1] / 'epoch_2.pth')
        assert set(torch.serialization.get_safe_globals()) == allowed


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
    meta = read(path)['meta']['dataset_meta']
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
    loaded = read(tmp_path / 'file.pth')
    for key, value in values.items():
        assert isinstance(loaded[key], np.ndarray)
        # numpy itself turns what it reads into the machine's byte order.
        assert loaded[key].dtype == np.dtype(name)
        np.testing.assert_array_equal(loaded[key], value)
    assert loaded['shared'] is loaded['c']
    assert loaded['scalar'] == array[1, 2]
    assert loaded['scalar'].dtype == array[1, 2].dtype


def test_malformed_sparse_tensors_are_refused(tmp_path):
    """As torch.load does; their indices would reach beyond the memory of a tensor."""
    beyond = torch.sparse_coo_tensor([[5]], [1.0], (2,), check_invariants=False)
    torch.save({'history': HistoryBuffer([1.0], [1]), 'w': beyond}, tmp_path / 'file.pth')
    with pytest.raises(DataError, match='cannot be read'):
        read(tmp_path / 'file.pth')


def test_the_function_of_the_fork(monkeypatch):
    """onedl-mmengine reads through one that falls back to running code."""
    monkeypatch.setattr(checkpoint, '_safe_torch_load', lambda *_, **__: None, raising=False)
    read_safely()
    assert checkpoint._safe_torch_load is checkpoint.torch.load


def test_numpy_1_names(tmp_path):
    path = tmp_path / 'file.pth'
    torch.save(np.arange(3), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    if b'numpy._core' not in content:
        pytest.skip('this numpy writes the old names itself')
    path.write_bytes(content.replace(b'numpy._core', b'numpy.core'))
    assert read(path).tolist() == [0, 1, 2]


def test_read_arrays_are_saved_as_plain_arrays(tmp_path):
    torch.save({'array': np.arange(3)}, tmp_path / 'first.pth')
    torch.save(read(tmp_path / 'first.pth'), tmp_path / 'second.pth')
    assert type(torch.load(tmp_path / 'second.pth', weights_only=False)['array']) is np.ndarray


@pytest.mark.parametrize('anneal', ['cos', 'linear'])
def test_one_cycle_scheduler(tmp_path, anneal):
    """The state of this scheduler holds a function."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
    config = {'eta_max': 0.1, 'total_steps': 10, 'anneal_strategy': anneal}
    torch.save(OneCycleLR(optimizer, **config).state_dict(), tmp_path / 'file.pth')
    scheduler = OneCycleLR(optimizer, **config)
    expected = scheduler.anneal_func
    scheduler.load_state_dict(read(tmp_path / 'file.pth'))
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
    with pytest.raises(DataError, match='refused as it could run code'):
        read(path)
    with pytest.raises(pickle.UnpicklingError):
        load(path)
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
        load(path)
    buffer._statistics_methods = {'mean': torch.Size}  # which any file may name
    torch.save(buffer, path)
    assert load(path).statistics('mean') == 1
    torch.save(Call(getattr, HistoryBuffer, 'update'), path)
    with pytest.raises(pickle.UnpicklingError, match=r"getattr.*'update'.*refused"):
        load(path)


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
        load(tmp_path / 'file.pth')


def test_an_array_is_filled_once(tmp_path):
    array = checkpoint_types._new_array()
    state = (1, (1,), checkpoint_types._Dtype('f8'), False, POINTERS)
    array.__setstate__(state)
    with pytest.raises(pickle.UnpicklingError, match='twice'):
        array.__setstate__(state)
    with pytest.raises(pickle.UnpicklingError, match='twice'):
        array[:0].__setstate__(state)


REAL = [
    np.ndarray,
    np.dtype,
    np._core.multiarray._reconstruct,
    np._core.multiarray.scalar,
    np.dtypes.Float64DType,
]


@pytest.mark.parametrize('fails', [False, True])
def test_types_that_the_user_allows(tmp_path, fails):
    """They serve whatever the user reads by them, whatever kat_mm has read before."""
    torch.save({'array': np.arange(3.0)}, tmp_path / 'array.pth')
    content = {'array': np.arange(3.0), 'history': HistoryBuffer([1.0], [1])}
    torch.save({**content, 'code': Call(print)} if fails else content, tmp_path / 'all.pth')
    with torch.serialization.safe_globals(REAL):
        if fails:
            with pytest.raises(DataError, match='refused'):
                read(tmp_path / 'all.pth')
        else:
            assert isinstance(read(tmp_path / 'all.pth')['history'], HistoryBuffer)
        for by in (torch.load, read):
            assert type(by(tmp_path / 'array.pth')['array']) is np.ndarray
        assert set(REAL) <= set(torch.serialization.get_safe_globals())
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / 'array.pth')


def test_a_type_of_the_users_beside_those_of_mmengine(tmp_path):
    content = {'path': Own(), 'history': HistoryBuffer([1.0], [1])}
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(DataError, match=r'holds \S*Own, .*torch.serialization.add_safe_globals'):
        read(tmp_path / 'a.pth')
    with torch.serialization.safe_globals([Own]):
        assert type(read(tmp_path / 'a.pth')['path']) is Own


class Own:
    pass


def test_other_threads_never_meet_our_types(tmp_path, monkeypatch):
    """While kat_mm reads, torch.load elsewhere refuses what it refuses alone."""
    torch.save({'array': np.arange(3)}, tmp_path / 'array.pth')
    seen = []

    def read_elsewhere(*args):
        with ThreadPoolExecutor(1) as pool:
            seen.append(pool.submit(torch.load, tmp_path / 'array.pth').exception())
        return new_array(*args)

    new_array = checkpoint_types._new_array
    monkeypatch.setitem(ALLOWED, 'numpy._core.multiarray._reconstruct', read_elsewhere)
    monkeypatch.setitem(ALLOWED, 'numpy.core.multiarray._reconstruct', read_elsewhere)
    assert read(tmp_path / 'array.pth')['array'].tolist() == [0, 1, 2]
    assert [type(error) for error in seen] == [pickle.UnpicklingError]


LOCATIONS = [
    ('meta', 'meta'),
    (torch.device('meta'), 'meta'),
    ({'cpu': 'meta'}, 'meta'),
    (lambda storage, location: storage, 'cpu'),
    (None, 'cpu'),
]
CONTENTS = {
    'plain.pth': {'w': torch.ones(3)},
    'history.pth': {'w': torch.ones(3), 'history': HistoryBuffer([1.0], [1])},
    'weights.safetensors': {'w': torch.ones(3)},
}


def save(name, folder):
    write = save_file if name.endswith('.safetensors') else torch.save
    write(CONTENTS[name], folder / name)


@pytest.mark.parametrize(('map_location', 'device'), LOCATIONS)
@pytest.mark.parametrize('name', CONTENTS)
def test_map_location(tmp_path, name, map_location, device):
    save(name, tmp_path)
    assert read(tmp_path / name, map_location)['w'].device.type == device


@pytest.mark.parametrize('name', ['plain.pth', 'history.pth'])
def test_a_wrong_map_location_is_not_the_files_fault(tmp_path, name):
    def fail(storage, location):
        raise LookupError('no place')

    torch.save(CONTENTS[name], tmp_path / name)
    with pytest.raises(LookupError, match='no place'):
        read(tmp_path / name, fail)


def test_a_buffer_is_read_from_where_it_stands(tmp_path):
    """As load_from_ceph reads."""
    file = io.BytesIO()
    file.write(b'12345')
    torch.save(CONTENTS['history.pth'], file, _use_new_zipfile_serialization=False)
    file.seek(5)
    assert checkpoint.torch.load(file, map_location='cpu')['w'].tolist() == [1, 1, 1]


def test_the_loaders_are_mmengines_own():
    assert checkpoint.load_from_local.__module__ == checkpoint.__name__
    for scheme in ('http', 'openmmlab', 'torchvision', 'mmcls', 'pavi', 'ceph'):
        assert getattr(checkpoint, f'load_from_{scheme}').__module__ == checkpoint.__name__
    for path, name in {'a.pth': 'local', 'https://a/b.pth': 'http', 's3://a/b': 'ceph'}.items():
        assert CheckpointLoader._get_checkpoint_loader(path).__name__ == f'load_from_{name}'
    assert checkpoint.torch.nn is torch.nn
    assert checkpoint.torch.save is torch.save


@pytest.mark.parametrize('name', ['gone.pth', '/nowhere/gone.pth', 'runs/last', '.', 'swift://a/b'])
def test_missing_files(name, monkeypatch, tmp_path):
    hub = pytest.importorskip('huggingface_hub')
    monkeypatch.setattr(hub, 'hf_hub_download', lambda *_, **__: pytest.fail('asks the network'))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=re.escape(f'checkpoint {name}')) as caught:
        read(name)
    assert isinstance(caught.value, DataError)


URL = 'https://example.org/some/weights.pth?version=3'
NAMED = ['torchvision://resnet18', 'open-mmlab://resnet50_caffe', 'mmcls://vgg11']


@pytest.fixture
def downloads(monkeypatch, tmp_path):
    """The files that torch.hub has been asked for; each holds `downloads.content`."""

    class Downloads(list):
        content: ClassVar = CONTENTS['history.pth']

    files = Downloads()

    def download(url, path, hash_prefix=None, progress=True):
        files.append(pathlib.Path(path))
        torch.save(files.content, path)

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    return files


@pytest.mark.parametrize('name', [URL, *NAMED[:2]])
def test_downloads_fill_and_use_the_cache_of_torch_hub(name, downloads, tmp_path):
    for _ in range(2):
        assert read(name)['w'].tolist() == [1, 1, 1]
    [file] = downloads
    assert file.parent == tmp_path / 'hub' / 'checkpoints'
    if name == URL:
        assert file.name == 'weights.pth'


@pytest.mark.parametrize('content', CONTENTS)
def test_a_file_in_the_cache_is_not_downloaded(content, downloads, tmp_path):
    folder = tmp_path / 'hub' / 'checkpoints'
    folder.mkdir(parents=True)
    save(content, folder)
    assert read(f'https://example.org/{content}', 'meta')['w'].is_meta
    assert not downloads


def test_model_dir(downloads, tmp_path):
    checkpoint.load_from_http(URL, map_location='cpu', model_dir=str(tmp_path), progress=False)
    assert downloads == [tmp_path / 'weights.pth']


@pytest.mark.parametrize('rank', [0, 1])
def test_others_wait_until_rank_0_has_downloaded(rank, downloads, monkeypatch):
    at_barrier = []
    monkeypatch.setattr(checkpoint, 'get_dist_info', lambda: (rank, 2))
    monkeypatch.setattr(torch.distributed, 'barrier', lambda: at_barrier.append(len(downloads)))
    read(URL)
    assert at_barrier == [1 - rank]
    assert len(downloads) == 1


@pytest.mark.parametrize('name', [URL, *NAMED])
def test_downloads_are_read_without_running_code(name, downloads, capsys):
    downloads.content = {'state_dict': {}, 'hook': Call(print, 'this ran')}
    with pytest.raises(DataError, match='refused as it could run code'):
        read(name)
    assert 'this ran' not in capsys.readouterr().out


def test_a_failing_download_fails_as_ever(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise URLError('timed out')

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', fail)
    with pytest.raises(URLError, match='timed out'):
        read(URL)


def test_a_download_with_another_hash_than_its_name_is_refused(monkeypatch, tmp_path):
    torch.save({'state_dict': {}}, file := tmp_path / 'weights.pth')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'urlopen', lambda _: urlopen(file.as_uri()))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    for name in (f'a_20220329-{digest}.pth', 'a-20220329.pth'):
        assert read(f'https://example.org/{name}') == {'state_dict': {}}
    with pytest.raises(DataError, match=r'a-01234567\.pth is refused: its content does not have'):
        read('https://example.org/a-01234567.pth')
    assert not (tmp_path / 'checkpoints' / 'a-01234567.pth').exists()
