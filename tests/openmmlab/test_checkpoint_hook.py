"""Good checkpoints survive whatever interrupts the writing of the next one."""

import os
import signal

import pytest
import torch
from mmengine.hooks import Hook
from small_runner import small_runner

from kat_mm.openmmlab import EpochSeedHook, latest_checkpoint
from kat_mm.openmmlab.hooks import checkpoint as checkpoint_hook
from kat_mm.openmmlab.hooks.checkpoint import AtomicLocalBackend
from kat_mm.weights.reading import read_checkpoint


def save(path, mtime=None):
    torch.save({'state_dict': {'weight': torch.zeros(100)}}, path)
    if mtime:
        os.utime(path, (mtime, mtime))
    return str(path)


def truncate(path):
    os.truncate(path, os.path.getsize(path) // 2)


def names(folder):
    return sorted(path.name for path in folder.glob('*.pth'))


def test_put_replaces_in_one_step(tmp_path):
    backend, path = AtomicLocalBackend(), tmp_path / 'new' / 'file.pth'
    backend.put(b'first', path)
    backend.put(b'second', str(path))
    assert path.read_bytes() == b'second'
    assert [p.name for p in path.parent.iterdir()] == ['file.pth']


@pytest.mark.parametrize('step', ['fsync', 'replace'])
def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / 'file.pth'
    AtomicLocalBackend().put(b'old', path)

    def fail(*args):
        raise OSError('No space left on device')

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match='No space'):
        AtomicLocalBackend().put(b'new', path)
    assert path.read_bytes() == b'old'
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('step', ['fsync', 'replace'])
def test_a_killed_write_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / 'epoch_1.pth'
    save(path)
    old = path.read_bytes()
    monkeypatch.setattr(os, step, lambda *args: os.kill(os.getpid(), signal.SIGKILL))
    if (process := os.fork()) == 0:
        AtomicLocalBackend().put(b'new' * 1000, path)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL
    assert path.read_bytes() == old
    assert latest_checkpoint(tmp_path) == str(path)


class Interruption(BaseException):
    """What ends a run in these tests."""


@pytest.fixture
def interrupt(monkeypatch):
    """interrupt(name): writing a checkpoint of this name is interrupted half-way."""

    def interrupt(name):
        replace = os.replace

        def interrupted(source, target):
            if os.path.basename(target) == name:
                truncate(source)
                raise Interruption
            replace(source, target)

        monkeypatch.setattr(checkpoint_hook.os, 'replace', interrupted)

    return interrupt


# With save_best, an epoch is saved, evaluated, saved as the best, and saved again with the score.
@pytest.mark.parametrize(
    ('options', 'interrupted', 'left'),
    [
        ({}, 'epoch_2.pth', ['epoch_1.pth']),
        ({'max_keep_ckpts': 1}, 'epoch_2.pth', ['epoch_1.pth']),
        (
            {'max_keep_ckpts': 1, 'save_best': 'rising/score', 'rule': 'greater'},
            'best_rising_score_epoch_2.pth',
            ['best_rising_score_epoch_1.pth', 'epoch_2.pth'],
        ),
        (
            {'max_keep_ckpts': 2, 'save_best': 'rising/score', 'rule': 'greater'},
            'epoch_3.pth',
            ['best_rising_score_epoch_2.pth', 'epoch_1.pth', 'epoch_2.pth'],
        ),
    ],
)
def test_an_interrupted_checkpoint_replaces_none(tmp_path, interrupt, options, interrupted, left):
    interrupt(interrupted)
    with pytest.raises(Interruption):
        small_runner(tmp_path, length=4, checkpoint=options).train()
    assert names(tmp_path) == left
    for name in left:
        assert read_checkpoint(tmp_path / name)['state_dict'].keys() == {
            'linear.weight',
            'linear.bias',
        }
    last = [name for name in left if name.startswith('epoch')][-1]
    assert latest_checkpoint(tmp_path) == str(tmp_path / last)


def test_an_interrupted_repetition_keeps_the_first(tmp_path, monkeypatch):
    """The last checkpoint is written again with the best score in it."""
    calls = []
    put = AtomicLocalBackend.put

    def interrupted(self, content, path):
        calls.append(os.path.basename(path))
        if calls.count('epoch_2.pth') == 2:
            raise Interruption
        put(self, content, path)

    monkeypatch.setattr(AtomicLocalBackend, 'put', interrupted)
    options = {'max_keep_ckpts': 1, 'save_best': 'rising/score', 'rule': 'greater'}
    with pytest.raises(Interruption):
        small_runner(tmp_path, length=3, checkpoint=options).train()
    # Both of the best: the one that epoch_2.pth knows of, and the one that it does not know yet.
    bests = ['best_rising_score_epoch_1.pth', 'best_rising_score_epoch_2.pth']
    assert names(tmp_path) == [*bests, 'epoch_2.pth']
    assert read_checkpoint(tmp_path / 'epoch_2.pth')['meta']['epoch'] == 2


def test_outdated_checkpoints_go_in_the_end(tmp_path):
    options = {'max_keep_ckpts': 2, 'save_best': 'rising/score', 'rule': 'greater'}
    small_runner(tmp_path, length=4, checkpoint=options).train()
    assert names(tmp_path) == ['best_rising_score_epoch_4.pth', 'epoch_3.pth', 'epoch_4.pth']
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_4.pth')
    # A resumed run goes on removing.
    small_runner(tmp_path, length=5, checkpoint=options, resume=True).train()
    assert names(tmp_path)[1:] == ['epoch_4.pth', 'epoch_5.pth']
    assert not list(tmp_path.rglob('*.partial'))


def test_checkpoints_by_iteration(tmp_path):
    options = {'interval': 2, 'max_keep_ckpts': 1}
    small_runner(tmp_path, length=5, by_epoch=False, checkpoint=options).train()
    assert names(tmp_path) == ['iter_5.pth']


def test_other_backends_are_respected(tmp_path):
    own = checkpoint_hook.SafeCheckpointHook(backend_args={'backend': 'local'})
    assert own.backend_args == {'backend': 'local'}
    assert checkpoint_hook.SafeCheckpointHook(out_dir='s3://bucket').backend_args is None


class TestLatestCheckpoint:
    """In a folder with epoch_1.pth, epoch_2.pth and epoch_10.pth, each younger than the last."""

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path):
        self.folder = tmp_path
        self.first, self.second, self.last = (
            save(tmp_path / f'epoch_{epoch}.pth', mtime=epoch) for epoch in (1, 2, 10)
        )
        self.pointer = tmp_path / 'last_checkpoint'

    def test_the_pointer_names_it(self):
        self.pointer.write_text(self.last)
        assert latest_checkpoint(self.folder) == self.last

    def test_without_a_pointer(self):
        assert latest_checkpoint(self.folder) == self.last
        assert latest_checkpoint(str(self.folder)) == self.last

    @pytest.mark.parametrize('content', ['', '\n', '\0\0\0', 'epoch_99.pth', '/'])
    def test_the_pointer_is_of_no_use(self, content):
        self.pointer.write_text(content)
        assert latest_checkpoint(self.folder) == self.last

    def test_the_pointer_is_out_of_date(self):
        """The run was killed between writing a checkpoint and its name."""
        self.pointer.write_text(self.second)
        assert latest_checkpoint(self.folder) == self.last

    def test_the_pointer_names_a_truncated_file(self):
        self.pointer.write_text(self.last)
        truncate(self.last)
        assert latest_checkpoint(self.folder) == self.second

    def test_younger_but_truncated_files_do_not_count(self):
        self.pointer.write_text(self.first)
        truncate(self.last)
        assert latest_checkpoint(self.folder) == self.second

    def test_checkpoints_of_an_older_and_longer_run_do_not_count(self):
        os.utime(self.first, (11, 11))
        self.pointer.write_text(self.first)
        assert latest_checkpoint(self.folder) == self.first

    def test_times_of_a_copied_folder_do_not_count(self):
        os.utime(self.first, (12, 12))
        self.pointer.write_text(self.last)
        assert latest_checkpoint(self.folder) == self.last

    def test_of_equal_times_the_last_number_counts(self):
        for path in (self.first, self.second, self.last):
            os.utime(path, (5, 5))
        assert latest_checkpoint(self.folder) == self.last

    def test_elsewhere(self, tmp_path):
        (tmp_path / 'elsewhere').mkdir()
        elsewhere = save(tmp_path / 'elsewhere' / 'epoch_20.pth')
        self.pointer.write_text(elsewhere)
        assert latest_checkpoint(self.folder) == elsewhere

    def test_partial_and_best_checkpoints_do_not_count(self):
        save(self.folder / 'epoch_11.pth.partial')
        save(self.folder / 'best_epoch_11.pth')
        assert latest_checkpoint(self.folder) == self.last

    def test_iterations(self):
        path = save(self.folder / 'iter_400.pth')
        assert latest_checkpoint(self.folder) == path

    def test_nothing_whole(self):
        for path in (self.first, self.second, self.last):
            truncate(path)
        assert latest_checkpoint(self.folder) is None
        assert latest_checkpoint(self.folder / 'missing') is None


class Stop(Hook):
    """Ends a run after an iteration, once its checkpoint is written."""

    priority = 'VERY_LOW'

    def __init__(self, iteration):
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.done = runner.iter + 1 == self.iteration
        if self.done and not runner.train_loop.__class__.__name__.startswith('Epoch'):
            raise Interruption

    def after_train_epoch(self, runner):
        if self.done:
            raise Interruption


@pytest.mark.parametrize('by_epoch', [True, False])
def test_gradients_of_an_unfinished_accumulation(tmp_path, by_epoch):
    """Updates come after 3, 6 and 8 iterations; the run is stopped after 4."""
    kind = dict(by_epoch=by_epoch, length=2 if by_epoch else 8, accumulative_counts=3)
    small_runner(tmp_path / 'whole', hooks=[EpochSeedHook()], **kind).train()
    with pytest.raises(Interruption):
        small_runner(tmp_path / 'parts', hooks=[EpochSeedHook(), Stop(4)], **kind).train()
    saved = torch.load(latest_checkpoint(tmp_path / 'parts'), weights_only=True)
    assert saved['gradients'].keys() == saved['state_dict'].keys()
    small_runner(tmp_path / 'parts', hooks=[EpochSeedHook()], resume=True, **kind).train()
    first, second = (
        torch.load(latest_checkpoint(tmp_path / name), weights_only=True)
        for name in ('whole', 'parts')
    )
    assert 'gradients' not in first
    for key, weight in first['state_dict'].items():
        assert torch.equal(second['state_dict'][key], weight)


def test_torch_reads_a_checkpoint_without_mmengine(tmp_path):
    small_runner(tmp_path, length=1).train()
    content = torch.load(tmp_path / 'epoch_1.pth', weights_only=True)
    loss = content['message_hub']['log_scalars']['train/loss']
    assert loss['log_history'].shape == loss['count_history'].shape == (4,)
