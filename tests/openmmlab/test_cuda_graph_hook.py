"""The hook that has parts of a model run by CUDA graphs."""

import pytest
import torch
from small_runner import small_runner

from kat_mm.errors import ConfigError
from kat_mm.openmmlab import CUDAGraphHook


@pytest.mark.skipif(torch.cuda.is_available(), reason='is about machines without a GPU')
def test_without_a_gpu_nothing_happens(tmp_path):
    hook = CUDAGraphHook(parts=['linear'])
    runner = small_runner(tmp_path, hooks=[hook])
    runner.train()
    assert hook.graphed is None
    assert 'forward' not in vars(runner.model.linear)


def test_a_model_without_features_needs_names(tmp_path):
    runner = small_runner(tmp_path, hooks=[CUDAGraphHook()])
    with pytest.raises(ConfigError, match='DropoutModel has no extract_feat; name the parts'):
        runner.train()


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'parts': 'backbone'}, "parts='backbone' must be a list"),
        ({'warmup': 0}, 'warmup=0'),
        ({'max_shapes': 1.5}, 'max_shapes=1.5'),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        CUDAGraphHook(**kwargs)


@pytest.mark.gpu
@pytest.mark.parametrize('accumulative_counts', [1, 2])
def test_a_run_ends_with_the_weights_of_one_without(tmp_path, accumulative_counts):
    if not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')
    states = []
    for name in ('with', 'without'):
        hook = CUDAGraphHook(parts=['linear'], warmup=1)
        runner = small_runner(
            tmp_path / name,
            hooks=[dict(type='EpochSeedHook'), *([hook] if name == 'with' else [])],
            accumulative_counts=accumulative_counts,
            length=3,
        )
        runner.train()
        states.append(runner.model.state_dict())
        assert hook.graphed is None
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
