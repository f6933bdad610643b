"""Which calls run by graphs, with stand-ins for graphs, and on a GPU against the same without."""

import copy
import logging

import pytest
import torch
from stand_ins import graphed, runs
from torch import nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from kat_mm.errors import ConfigError
from kat_mm.graphs import CaptureError, graph_parts
from kat_mm.graphs import graphed as module


@pytest.mark.usefixtures('without_gpu')
class TestWhichCallsRunByGraphs:
    def test_each_shape_after_its_warm_up(self):
        function = graphed()
        for _ in range(5):
            function(torch.ones(4, 3))
        assert runs(function) == [3]
        for _ in range(3):
            function(torch.ones(5, 3))
        assert runs(function) == [3, 1]

    @pytest.mark.parametrize(
        'change',
        [
            lambda linear: torch.no_grad(),
            lambda linear: linear.eval(),
            lambda linear: linear.bias.requires_grad_(False),
            lambda linear: torch.use_deterministic_algorithms(True),
        ],
    )
    def test_another_state_makes_another_graph(self, change):
        linear = nn.Linear(3, 2)
        function = graphed(linear)
        for _ in range(3):
            function(torch.ones(4, 3))
        try:
            context = change(linear)
            with context if hasattr(context, '__enter__') else torch.enable_grad():
                function(torch.ones(4, 3))
        finally:
            torch.use_deterministic_algorithms(False)
        assert runs(function) == [1]

    def test_shapes_beyond_the_limit_run_without(self, caplog):
        caplog.set_level(logging.WARNING, 'kat_mm')
        function = graphed(max_shapes=1)
        for size in (4, 5, 4, 5, 4, 5, 5, 5):
            assert function(torch.ones(size, 3)).shape == (size, 2)
        assert runs(function) == [1]
        messages = [r.getMessage() for r in caplog.records]
        assert len(messages) == 1
        assert 'linear: 1 CUDA graphs for training are there' in messages[0]
        assert 'such as (5, 3)' in messages[0]
        with torch.no_grad():  # these have graphs of their own
            for _ in range(3):
                function(torch.ones(5, 3))
        assert runs(function) == [1, 1]

    def test_a_call_before_the_backward_pass_of_another_runs_without(self):
        function = graphed()
        for _ in range(3):
            function(torch.ones(4, 3))
        (capture,) = function.captures.values()
        capture.pending = True
        function(torch.ones(4, 3))
        assert capture.runs == 1
        capture.pending = False
        function(torch.ones(4, 3))
        assert capture.runs == 2

    def test_other_arguments_run_without(self):
        function = graphed()
        for _ in range(4):
            function(input=torch.ones(4, 3))
        assert not function.captures

    @pytest.mark.parametrize('error', [RuntimeError('CUDA error: why\nmore'), CaptureError('why')])
    def test_a_capture_that_fails_is_told_once(self, caplog, error):
        caplog.set_level(logging.WARNING, 'kat_mm')

        def fails(*args):
            raise error

        function = graphed(capture=fails)
        for _ in range(6):
            assert function(torch.ones(4, 3)).shape == (4, 2)
        (message,) = [r.getMessage() for r in caplog.records]
        assert message.startswith('linear runs without CUDA graphs: ')
        assert 'why' in message

    def test_recomputing_parts_run_without(self, caplog):
        linear = nn.Linear(3, 2)
        linear.with_cp = True
        function = graphed(linear)
        for _ in range(4):
            function(torch.ones(4, 3))
        assert not function.captures
        assert 'with_cp=True' in caplog.text

    def test_norms_of_several_processes_run_without(self, caplog, monkeypatch):
        model = nn.Sequential(nn.Linear(3, 2), nn.SyncBatchNorm(2))
        monkeypatch.setattr(model[1], 'forward', lambda x: x)
        monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
        monkeypatch.setattr(torch.distributed, 'get_world_size', lambda: 2)
        function = graphed(model)
        for _ in range(4):
            function(torch.ones(4, 3))
        assert not function.captures
        assert 'SyncBatchNorm shares statistics between processes' in caplog.text

    @pytest.mark.parametrize('around', [FlopCounterMode(display=False), forward_ad.dual_level()])
    def test_calls_that_something_watches_run_without(self, around):
        function = graphed()
        with around:
            for _ in range(4):
                function(torch.ones(4, 3))
        assert not function.captures

    @pytest.mark.filterwarnings('ignore:.torch.jit')
    @pytest.mark.parametrize(
        'transform',
        [
            lambda f: torch.func.grad(lambda x: f(x).sum()),
            torch.func.vmap,
            lambda f: lambda x: torch.jit.trace(lambda x: f(x), x, check_trace=False)(x),
        ],
    )
    def test_calls_inside_of_transforms_run_without(self, transform):
        linear = nn.Linear(3, 2).requires_grad_(False)  # as traces want it
        function = graphed(linear)
        expected = transform(linear.forward)(torch.ones(4, 3))
        for _ in range(4):
            assert torch.equal(transform(function)(torch.ones(4, 3)), expected)
        assert not function.captures

    def test_beyond_the_limit_nothing_is_kept(self):
        function = graphed(max_shapes=1)
        for _ in range(3):
            function(torch.ones(4, 3))
        for size in range(5, 50):
            function(torch.ones(size, 3))
        assert not function._calls

    def test_shapes_that_never_come_again_are_forgotten(self, monkeypatch):
        monkeypatch.setattr(module, 'COUNTED', 10)
        function = graphed()
        for size in range(1, 50):
            function(torch.ones(size, 3))
        assert len(function._calls) == 10
        for _ in range(2):
            function(torch.ones(49, 3))
        assert runs(function) == [1]

    def test_copies_of_a_model_have_their_own_function(self):
        model = nn.Sequential(nn.Linear(3, 2))
        parts = graph_parts(model, ['0'])
        twin = copy.deepcopy(model)
        twin[0].weight.data.zero_()
        twin[0].bias.data.zero_()
        assert twin(torch.ones(1, 3)).abs().sum() == 0
        assert model(torch.ones(1, 3)).abs().sum() > 0
        assert list(model.state_dict()) == list(twin.state_dict()) == ['0.weight', '0.bias']
        parts.release()
        assert 'forward' not in vars(model[0])


@pytest.mark.parametrize(
    'names', [['0', '0'], ['0', '1'], ['1', '0', '0.forward'], ['0', 'twin.0']]
)
def test_what_has_several_names_is_one_part(names):
    linear = nn.Linear(3, 2)
    model = nn.Sequential(linear, linear)
    model.add_module('twin', nn.Sequential(linear))
    parts = graph_parts(model, names)
    assert [part.name for part in parts.parts] == names[:1]
    assert linear.forward is parts.parts[0]
    parts.release()
    assert 'forward' not in vars(linear)


def test_a_function_of_an_instance_is_given_back():
    model = nn.Sequential(nn.Linear(3, 2))
    model[0].forward = own = lambda x: x + 1
    parts = graph_parts(model, ['0'])
    assert torch.equal(model(torch.zeros(2)), torch.ones(2))
    parts.release()
    assert vars(model[0])['forward'] is own
    parts.release()
    assert vars(model[0])['forward'] is own


def test_who_put_another_function_there_keeps_it():
    model = nn.Sequential(nn.Linear(3, 2))
    parts = graph_parts(model, ['0'])
    graph = model[0].forward
    model[0].forward = wrapped = lambda x: graph(x)
    parts.release()
    assert model[0].forward is wrapped


def test_on_a_cpu_all_runs_as_it_is():
    function = graphed()
    for _ in range(4):
        function(torch.ones(4, 3))
    assert not function.captures


@pytest.mark.parametrize('name', ['head', '0.head', '0.weight'])
def test_parts_that_are_none_are_refused(name):
    with pytest.raises(ConfigError, match=f'parts: .*{name}'):
        graph_parts(nn.Sequential(nn.Linear(3, 2)), [name])


@pytest.mark.parametrize('kwargs', [{'warmup': 0}, {'max_shapes': 0}])
def test_numbers_below_one_are_refused(kwargs):
    with pytest.raises(ConfigError, match=next(iter(kwargs))):
        graphed(**kwargs)
