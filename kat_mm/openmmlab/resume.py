"""What a run starts from, and whether a checkpoint can be resumed with the settings of now."""

import ast
import logging
from collections.abc import Iterator, Mapping

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper

from ..errors import ConfigError
from ..weights.reading import read_checkpoint
from . import config_checks
from .compat.load_from import WRAPPER_NAMES
from .configs import type_name
from .hooks.checkpoint import latest_checkpoint
from .settings import leaves

# Settings whose values mmengine restores from the checkpoint, whatever the config says now.
RESTORED = ('param_scheduler', 'optim_wrapper.optimizer', 'optim_wrapper.paramwise_cfg')
# Settings that must be of the same kind as then, for their state to fit.
KINDS = ('train_cfg', 'optim_wrapper', 'param_scheduler')


def choose_weights(config: Config, resume: str | None) -> None:
    """Sets what training starts from: a checkpoint to resume, load_from, or nothing.

    Raises:
        ConfigError: for a checkpoint that cannot be resumed with this config.
        DataError: for one that cannot be read.
    """
    if resume is None and config.get('resume'):
        resume = config.get('load_from') or 'auto'
    path = latest_checkpoint(config.work_dir) if resume == 'auto' else resume
    config.resume = path is not None
    if config.resume:
        config.load_from = path
    elif resume:
        print_log(f'nothing to resume in {config.work_dir}: training from the start', 'current')
    if config.get('load_from'):
        config_checks.check_checkpoint(config.load_from, config.resume)
    if config.resume:
        check_settings(config, read_checkpoint(path), path)


def check_settings(config: Config, content: Mapping, path: str) -> None:
    """Compares the config with that of a checkpoint to resume, and warns of what has no effect.

    Raises:
        ConfigError: for another kind of loop, optimizer or schedule, and for gradients that were
            accumulated and not saved.
    """
    way_out = f'to start from its weights: --cfg-options load_from={path}, without --resume'
    old = _settings(content.get('meta', {}).get('cfg', ''))
    _check_gradients(old or config, content, path)
    new = _settings(config.pretty_text)
    for name in KINDS:
        kinds = [', '.join(_kinds(settings.get(name))) for settings in (old, new)]
        if name in old and kinds[0] != kinds[1]:
            raise ConfigError(
                f'checkpoint {path} cannot be resumed with another {name}, now {kinds[1]} and '
                f'{kinds[0]} then; {way_out}'
            )
    before, now = dict(leaves(old)), dict(leaves(new))
    changed = [k for k in {**before, **now} if before.get(k) != now.get(k)]
    ignored = [k for k in changed if k.startswith(RESTORED)]
    if old and ignored:
        shown = ', '.join(f'{k}={now.get(k)!r} (was {before.get(k)!r})' for k in ignored[:6])
        more = f' and {len(ignored) - 6} more' if len(ignored) > 6 else ''
        print_log(
            f'--resume goes on with the optimizer and the schedule of {path} and ignores {shown}'
            f'{more}; {way_out}',
            level=logging.WARNING,
        )
    ends = [k for k in changed if k in ('train_cfg.max_epochs', 'train_cfg.max_iters')]
    if old and ends and not any(k.startswith('param_scheduler') for k in ignored):
        print_log(
            f'--resume: training ends at {ends[0]}={now.get(ends[0])}, but the learning rate '
            f'follows the schedule of {path}, made for {before.get(ends[0])}; {way_out}',
            level=logging.WARNING,
        )


def _kinds(settings: object) -> list[str]:
    """Returns the types by which what is restored is told from another kind of it."""
    if isinstance(settings, list):
        return [type_name(part) for part in settings]
    if not isinstance(settings, dict):
        return [str(settings)]
    if 'optimizer' in settings:
        return [type_name(settings['optimizer'])]
    by_epoch = settings.get('by_epoch', type_name(settings) == 'EpochBasedTrainLoop')
    if 'max_epochs' in settings or 'max_iters' in settings:
        return ['a loop by epoch' if by_epoch else 'a loop by iteration']
    return [type_name(settings)]


def _check_gradients(config: Mapping, content: Mapping, path: str) -> None:
    """Refuses a checkpoint amid an accumulation whose gradients it lacks."""
    wrapper = config.get('optim_wrapper')
    counts = wrapper.get('accumulative_counts', 1) if isinstance(wrapper, dict) else 1
    iteration = content.get('meta', {}).get('iter', 0)
    was_last = content.get('message_hub', {}).get('runtime_info', {}).get('max_iters') == iteration
    if counts > 1 and iteration % counts and 'gradients' not in content and not was_last:
        raise ConfigError(
            f'checkpoint {path} cannot be resumed exactly: it was saved {iteration % counts} '
            f'iterations after the last update, as accumulative_counts={counts}, without their '
            f'gradients. Resume from an iteration that {counts} divides; SafeCheckpointHook saves '
            'them'
        )


class ResumeCheckHook(Hook):
    """Refuses to resume a checkpoint whose weights or parameter groups are not those of the model.

    mmengine would load what fits, and fail later or train something else.

    Raises:
        ConfigError: names the first that differs, and the way out.
    """

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if not runner._resume:
            return
        path = runner._load_from
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        saved, own = (
            {WRAPPER_NAMES.sub('', key): value for key, value in state.items()}
            for state in (checkpoint['state_dict'], model.state_dict())
        )
        problem = next(_differences(saved, own), None)
        optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
        if problem is None and optimizer is not None and 'optimizer' in checkpoint:
            problem = next(_group_differences(checkpoint['optimizer'], optimizer), None)
        if problem:
            raise ConfigError(
                f'checkpoint {path} cannot be resumed with this config: {problem}. Set model, '
                'frozen_stages and paramwise_cfg as they were, or start from its weights: '
                f'--cfg-options load_from={path}, without --resume'
            )


def _differences(saved: Mapping, own: Mapping) -> Iterator[str]:
    for key in own:
        if key not in saved:
            yield f'it lacks {key}'
        elif saved[key].numel() != own[key].numel():  # earlier versions had rows of coefficients
            shapes = tuple(saved[key].shape), tuple(own[key].shape)
            yield f'{key} is {shapes[0]} there and {shapes[1]} in the model'
    for key in saved.keys() - own.keys():
        yield f'the model has no {key}'


def _group_differences(saved: Mapping, optimizer) -> Iterator[str]:
    groups = optimizer.param_groups
    sizes = [[len(g['params']) for g in each] for each in (saved['param_groups'], groups)]
    if sizes[0] != sizes[1]:
        numbers = [f'{len(each)} groups with {sum(each)} tensors' for each in sizes]
        yield f'its optimizer has {numbers[0]}, that of the model {numbers[1]}'
        return
    for old, new in zip(saved['param_groups'], groups, strict=True):
        for index, parameter in zip(old['params'], new['params'], strict=True):
            for value in saved['state'].get(index, {}).values():
                if getattr(value, 'ndim', 0) and value.numel() != parameter.numel():
                    yield (
                        f'its optimizer has a state of shape {tuple(value.shape)} for a parameter '
                        f'of shape {tuple(parameter.shape)}'
                    )


def _settings(text: str) -> dict:
    """Returns the settings in the text of a config, without running any of it.

    Such a text, which checkpoints hold, consists of assignments of literals and `dict(...)`; other
    things stand for themselves as text.
    """
    try:
        statements = ast.parse(text).body
    except SyntaxError:
        return {}
    return {
        statement.targets[0].id: _value(statement.value)
        for statement in statements
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }


def _value(node: ast.expr) -> object:
    match node:
        case ast.Call(func=ast.Name('dict'), args=[]):
            return {k.arg: _value(k.value) for k in node.keywords}
        case ast.Dict():
            pairs = zip(node.keys, node.values, strict=True)
            return {str(_value(k)): _value(v) for k, v in pairs if k is not None}
        case ast.List() | ast.Tuple():
            return [_value(part) for part in node.elts]
        case ast.Constant():
            return node.value
    return ast.unparse(node)
