"""What a wrong config makes mmengine raise is told in one line."""

import os

import pytest
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, DefaultScope
from mmengine.visualization import WandbVisBackend

from kat_mm.errors import ConfigError
from kat_mm.openmmlab.runs import build_runner, check_backends, config_mistakes


@pytest.mark.parametrize(
    ('registry', 'settings', 'message'),
    [
        (MODELS, dict(type='RetinaHeat'), 'there is no model RetinaHeat; did you mean RetinaHead'),
        (MODELS, dict(type='zzzz'), 'there is no model zzzz; is it imported by custom_imports'),
        (
            HOOKS,
            dict(type='LoggerHook', intervall=1),
            'LoggerHook takes no intervall; did you mean',
        ),
        (MODELS, dict(type='FCNHead'), 'FCNHead needs '),
    ],
)
def test_mistakes_of_a_config(registry, settings, message):
    scope = 'mmseg' if settings['type'] == 'FCNHead' else 'mmdet'
    error = pytest.raises(ConfigError, match=message)
    with DefaultScope.overwrite_default_scope(scope), error, config_mistakes():
        registry.build(settings)


def test_errors_inside_of_a_part_stay_what_they_are():
    @HOOKS.register_module(force=True)
    class Failing:
        def __init__(self):
            dict(a=1)['b']

    with pytest.raises(KeyError, match='b'), config_mistakes():
        HOOKS.build(dict(type='Failing'))


@pytest.mark.parametrize('kind', ['WandbVisBackend', WandbVisBackend])
def test_backends_that_are_not_installed(monkeypatch, kind):
    monkeypatch.setattr('kat_mm.openmmlab.runs.find_spec', lambda name: None)
    backends = [dict(type='LocalVisBackend'), dict(type=kind)]
    with pytest.raises(
        ConfigError, match=r'visualizer.vis_backends.1: WandbVisBackend needs the package wandb'
    ):
        check_backends(Config(dict(visualizer=dict(vis_backends=backends))))
    check_backends(Config(dict(visualizer=dict(vis_backends=backends[:1]))))
    check_backends(Config({}))


@pytest.mark.parametrize('deterministic', [False, True])
def test_cublas_is_told_of_deterministic_algorithms(monkeypatch, deterministic):
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', '')
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG')
    monkeypatch.setattr('kat_mm.openmmlab.runs.Runner.from_cfg', lambda config: 'runner')
    config = Config(dict(randomness=dict(seed=0, deterministic=deterministic)))
    assert build_runner(config) == 'runner'
    assert os.environ.get('CUBLAS_WORKSPACE_CONFIG') == (':4096:8' if deterministic else None)
