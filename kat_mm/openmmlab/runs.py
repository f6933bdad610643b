"""Runners from configs, and what goes wrong when mmengine builds one, in one line."""

import inspect
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from mmengine.config import Config
from mmengine.registry import RUNNERS, DefaultScope
from mmengine.runner import Runner

from ..errors import ConfigError, UserError, one_line
from .configs import type_name
from .settings import check_type, names_in, nearest

# What the visualizer's backends import when something is first logged.
BACKEND_MODULES = {
    'AimVisBackend': 'aim',
    'ClearMLVisBackend': 'clearml',
    'DVCLiveVisBackend': 'dvclive',
    'MLflowVisBackend': 'mlflow',
    'NeptuneVisBackend': 'neptune',
    'TensorboardVisBackend': 'tensorboard',
    'WandbVisBackend': 'wandb',
}


def build_runner(config: Config) -> Runner:
    """Returns the runner of a config, after a check of what it logs to.

    Where algorithms must be deterministic, cuBLAS is told so, without which torch refuses to
    multiply matrices on a GPU.

    Raises:
        ConfigError: for a visualizer's backend whose package is not installed.
    """
    check_backends(config)
    if (config.get('randomness') or {}).get('deterministic'):
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    return RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)


def check_optimizer(config: Config) -> None:
    """Checks that the optimizer is known, which mmengine would tell unclearly.

    Raises:
        ConfigError: names it, and those like it.
    """
    optimizer = (config.get('optim_wrapper') or {}).get('optimizer') or {}
    if isinstance(name := optimizer.get('type'), str):
        with DefaultScope.overwrite_default_scope(config.get('default_scope') or 'mmengine'):
            check_type(name, 'AdamW', 'optim_wrapper.optimizer.type')


def check_backends(config: Config) -> None:
    """Checks that the packages that the visualizer logs to are installed.

    Raises:
        ConfigError: names the backend, its package and what to do.
    """
    backends = (config.get('visualizer') or {}).get('vis_backends') or []
    for i, backend in enumerate([backends] if isinstance(backends, dict) else backends):
        kind = type_name(backend)
        module = BACKEND_MODULES.get(kind)
        if module and not find_spec(module):
            raise ConfigError(
                f'visualizer.vis_backends.{i}: {kind} needs the package {module}, which is not '
                f'installed: pip install {module}, or --cfg-options '
                f'visualizer.vis_backends.{i}.type=LocalVisBackend'
            )


@contextmanager
def config_mistakes() -> Iterator[None]:
    """Turns what mmengine raises for a wrong type or argument in a config into a ConfigError."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        if (message := _mistake(error)) is None:
            raise
        raise ConfigError(f'config: {message}') from error


def _mistake(error: Exception) -> str | None:
    """Says what is wrong if an error comes from how an object of a config is built."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    builds = [i for i, f in enumerate(frames) if f.f_code.co_name == 'build_from_cfg']
    if frames[-1].f_globals['__name__'].startswith('torch.utils.data.'):
        return f'a data loader cannot be built: {one_line(error)}'
    if not builds:
        return None
    build = frames[builds[-1]].f_locals
    inside = frames[builds[-1] + 1 :]
    text = str(error).strip('\'"')
    if isinstance(error, KeyError) and not inside and ' is not in the ' in text:
        name, kind, known = build['obj_type'], build['registry'].name, names_in(build['registry'])
        way_out = nearest(name, known, 'is it imported by custom_imports?')
        return f'there is no {kind} {name}; {way_out}'
    if isinstance(error, TypeError) and all(f.f_code.co_name == '__init__' for f in inside):
        wrong = re.search(r"(?:unexpected keyword argument|missing .* argument\w*:?) '?(.*)", text)
        if wrong and inspect.isclass(build.get('obj_cls')):
            kind, name = build['obj_cls'], wrong[1].split("'")[0]
            if 'missing' in text:
                return f'{kind.__name__} needs {wrong[1]}'.replace("'", '')
            known = {p for k in kind.__mro__[:-1] for p in inspect.signature(k).parameters}
            return f'{kind.__name__} takes no {name}; {nearest(name, known, "remove it")}'
    return None
