"""What the log holds where losses are read late is what it holds where they are read at once."""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from small_runner import small_runner

from kat_mm.errors import ConfigError, NonFiniteLossError
from kat_mm.openmmlab import DeferredRuntimeInfoHook, FiniteLossHook
from kat_mm.openmmlab.hooks.deferred import DeferredTerms
from kat_mm.weights.reading import read_checkpoint

LATE = dict(type='DeferredRuntimeInfoHook', interval=100)


def run(work_dir, info, clip=None, **kwargs):
    """Trains for six iterations; returns what the message hub holds of losses."""
    runner = small_runner(work_dir, by_epoch=False, length=6, **kwargs)
    runner._hooks = [h for h in runner.hooks if type(h).__name__ != 'RuntimeInfoHook']
    runner.register_hook(info)
    logger = next(h for h in runner.hooks if type(h).__name__ == 'LoggerHook')
    logger.interval = 4
    if clip:
        runner.optim_wrapper = runner.build_optim_wrapper(
            {'optimizer': {'type': 'SGD', 'lr': 0.01}, 'clip_grad': {'max_norm': clip}}
        )
    runner.train()
    scalars = runner.message_hub.log_scalars
    return {name: list(buffer.data[0]) for name, buffer in scalars.items() if 'time' not in name}


@pytest.mark.parametrize('clip', [None, 0.01])
def test_the_log_holds_the_same_numbers(tmp_path, clip):
    results = [
        run(tmp_path / str(i), info, clip)
        for i, info in enumerate([dict(type='RuntimeInfoHook'), LATE])
    ]
    expected, found = results
    assert found == expected
    assert len(found['train/loss_b']) == 6
    assert ('train/grad_norm' in found) == bool(clip)


class Read(Hook):
    """Notes how many losses the message hub knows before each thing that may need them."""

    priority = 'LOWEST'

    def __init__(self):
        self.counts = []

    def _count(self, runner):
        buffer = runner.message_hub.log_scalars.get('train/loss')
        return 0 if buffer is None else len(buffer.data[0])

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.counts.append((runner.iter + 1, self._count(runner)))


def test_losses_are_read_for_the_log_for_evaluation_and_for_checkpoints(tmp_path):
    read = Read()
    run(tmp_path, LATE, hooks=[read], checkpoint={'interval': 5})
    # The evaluation behind iteration 3 reads, the line of 4, and the checkpoints of 5 and 6.
    assert dict(read.counts) == {1: 0, 2: 0, 3: 0, 4: 4, 5: 5, 6: 6}
    saved = read_checkpoint(tmp_path / 'iter_5.pth')['message_hub']['log_scalars']
    assert len(saved['train/loss']['log_history']) == 5


def test_on_a_cpu_losses_are_read_at_once(tmp_path):
    read = Read()
    run(tmp_path, dict(type='DeferredRuntimeInfoHook'), hooks=[read])
    assert all(iteration == count for iteration, count in read.counts)


class Spoil(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        runner.model.factor = float('nan') if runner.iter + 1 == 2 else 1.0


def test_a_loss_that_is_not_finite_is_found_by_the_next_line_of_the_log(tmp_path):
    read = Read()
    with pytest.raises(NonFiniteLossError, match='not finite at iteration 2: loss nan, loss_a nan'):
        run(tmp_path, LATE, hooks=[read, Spoil(), FiniteLossHook(100)], checkpoint={'interval': 9})
    # The evaluation behind iteration 3 comes before the log's line of iteration 4.
    assert [iteration for iteration, _ in read.counts] == [1, 2, 3]


def test_no_checkpoint_is_spoiled(tmp_path):
    with pytest.raises(NonFiniteLossError, match='not finite at iteration 2: '):
        run(tmp_path, LATE, hooks=[Spoil(), FiniteLossHook(100)], checkpoint={'interval': 2})
    assert not list(tmp_path.glob('*.pth'))


def test_terms_keep_their_order_and_values():
    terms = DeferredTerms()
    terms.add(1, {'loss': torch.tensor(0.1), 'acc': torch.tensor([50.0], dtype=torch.float64)})
    terms.add(2, {'loss': torch.tensor(0.2, requires_grad=True), 'acc': 3})
    assert terms.read() == [
        (1, {'loss': torch.tensor(0.1).item(), 'acc': 50.0}),
        (2, {'loss': torch.tensor(0.2).item(), 'acc': 3}),
    ]
    assert terms.read() == []


def test_a_term_that_is_written_to_keeps_its_value():
    terms = DeferredTerms()
    total, count = torch.zeros(()), torch.zeros(1, dtype=torch.long)
    for iteration in range(3):
        terms.add(iteration, {'total': total.add_(1), 'count': count.add_(2), 'lr': iteration})
    assert terms.read() == [
        (i, {'total': i + 1.0, 'count': 2 * (i + 1), 'lr': i}) for i in range(3)
    ]


def test_iterations_may_lack_terms_of_others():
    terms = DeferredTerms()
    terms.add(1, {'a': torch.tensor(1.0), 'b': torch.tensor(2)})
    terms.add(2, {})
    terms.add(3, {'b': torch.tensor(3), 'a': torch.tensor(4.0), 'c': torch.tensor(5.0)})
    assert terms.read() == [(1, {'a': 1, 'b': 2}), (2, {}), (3, {'b': 3, 'a': 4, 'c': 5})]


class TwoOptimizers(Hook):
    """Has the model train by an OptimWrapperDict, as generators and discriminators do."""

    priority = 'VERY_HIGH'

    def before_train(self, runner):
        model = runner.model
        wrappers = {
            name: OptimWrapper(torch.optim.SGD([p], lr=0.01), clip_grad={'max_norm': 0.01})
            for name, p in model.linear.named_parameters()
        }
        runner.optim_wrapper = OptimWrapperDict(**wrappers)

        def train_step(data, optim_wrapper):
            losses = model(**model.data_preprocessor(data, True), mode='loss')
            loss, terms = model.parse_losses(losses)
            for wrapper in wrappers.values():
                wrapper.zero_grad()
            loss.backward()
            for wrapper in wrappers.values():
                wrapper.step()
            return terms

        model.train_step = train_step


def test_several_optimizers_are_logged_as_before(tmp_path):
    expected, found = (
        run(tmp_path / str(i), info, hooks=[TwoOptimizers()])
        for i, info in enumerate([dict(type='RuntimeInfoHook'), LATE])
    )
    assert found == expected
    assert len(found['train/grad_norm']) == 12


def test_an_interval_that_is_none():
    with pytest.raises(ConfigError, match='interval=0'):
        DeferredRuntimeInfoHook(interval=0)
