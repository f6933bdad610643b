"""What a study is, and its file."""

import re
import runpy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from ...checks import check_ints
from ...errors import ConfigError, one_line

# Scores by name: the key that OpenMMLab's metrics log, and what brings it to [0, 1].
SCORES = {
    'box AP': ('coco/bbox_mAP', 1.0),
    'mask AP': ('coco/segm_mAP', 1.0),
    'mIoU': ('mIoU', 0.01),
}
KEYS = ('tasks', 'variants', 'seeds', 'options', 'prepare', 'quick')
NAME = re.compile(r'[A-Za-z0-9_][\w.+-]*')  # of a folder


@dataclass(frozen=True)
class Task:
    """What is trained: a config and the names in `SCORES` of what its validation gives."""

    name: str
    config: Path
    scores: tuple[str, ...]


@dataclass(frozen=True)
class Variant:
    """One way to train each task.

    Attributes:
        name: of its folder.
        title: in tables and pictures.
        options: settings that override the task's config, by dotted keys.
        after: the variant with whose final weights, of the same seed, it starts.
    """

    name: str
    title: str
    options: Mapping[str, object]
    after: str | None = None


@dataclass(frozen=True)
class Study:
    """All trainings: each variant of each task with each seed.

    Attributes:
        name: that of its file.
        tasks, variants: by name, in the order of the file.
        seeds: of random numbers, `randomness.seed` of the configs.
        options: of every training, before those of the variant.
        prepare: command lines of tools, each a list, that run before all trainings.
        quick: settings that come last where the study is only tried out.
    """

    name: str
    tasks: Mapping[str, Task]
    variants: Mapping[str, Variant]
    seeds: tuple[int, ...]
    options: Mapping[str, object]
    prepare: tuple[tuple[str, ...], ...]
    quick: Mapping[str, object]


def read_study(path: str | Path) -> Study:
    """Reads a study from its file, a Python program that assigns these names:

        tasks = dict(detection=dict(config='detection.py', scores=['box AP', 'mask AP']))
        variants = {
            'mlp': {'model.backbone.ffn': 'mlp'},
            'tuned': dict(title='fine-tuned', after='mlp', options={...}),
        }
        seeds = (0, 1, 2)

    and, if it likes, `options`, `prepare` and `quick`; see `Study`. Paths of configs are relative
    to the file.

    Raises:
        ConfigError: if there is no such file, it cannot be run or something in it does not fit.
    """
    path = Path(path)
    if not path.is_file():
        near = get_close_matches(path.name, [p.name for p in path.parent.glob('*.py')], 3)
        way = f'did you mean {" or ".join(near)}?' if near else 'give the path of its file'
        raise ConfigError(f'study {path} does not exist; {way}')
    try:
        found = {k: v for k, v in runpy.run_path(str(path)).items() if k in KEYS}
    except Exception as error:  # it is a program
        raise ConfigError(f'study {path} cannot be read: {one_line(error)}') from error
    try:
        return _study(path, found)
    except ConfigError as error:
        raise ConfigError(f'study {path}: {error}') from None


def flat(options: Mapping, prefix: str = '') -> dict[str, object]:
    """Returns settings by dotted keys alone, from ones that may have dicts in them."""
    result = {}
    for key, value in options.items():
        if isinstance(value, Mapping):
            result |= flat(value, f'{prefix}{key}.')
        else:
            result[f'{prefix}{key}'] = value
    return result


def _study(path: Path, found: dict) -> Study:
    for key in ('tasks', 'variants', 'seeds'):
        if not found.get(key):
            raise ConfigError(f'{key} is missing or empty')
    tasks = {
        name: _task(name, value, path.parent) for name, value in _named('tasks', found['tasks'])
    }
    variants = {name: _variant(name, v) for name, v in _named('variants', found['variants'])}
    _check_chains(variants)
    seeds = check_ints('seeds', found['seeds'], 0)
    if len({*seeds}) < len(seeds):
        raise ConfigError(f'seeds={seeds} has one twice')
    prepare = tuple(tuple(map(str, command)) for command in found.get('prepare', ()))
    options, quick = (_options(key, found.get(key, {})) for key in ('options', 'quick'))
    return Study(path.stem, tasks, variants, seeds, options, prepare, quick)


def _named(kind: str, value: object) -> list[tuple[str, Mapping]]:
    if not isinstance(value, Mapping) or not all(isinstance(v, Mapping) for v in value.values()):
        raise ConfigError(f'{kind} must be a dict of dicts by name')
    for name in value:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ConfigError(
                f'{kind}: {name!r} must be letters, digits and _ . + -, as a folder is named by it'
            )
    return [*value.items()]


def _task(name: str, value: Mapping, folder: Path) -> Task:
    place = f'tasks[{name!r}]'
    if {*value} != {'config', 'scores'}:
        raise ConfigError(f'{place} must have config and scores, got {", ".join(map(str, value))}')
    config = folder / str(value['config'])
    if not config.is_file():
        raise ConfigError(f'{place}: config {config} does not exist')
    scores = value['scores']
    scores = (scores,) if isinstance(scores, str) else tuple(scores)
    if not scores or {*scores} - {*SCORES}:
        raise ConfigError(f'{place}: scores={scores} must be of {", ".join(SCORES)}')
    return Task(name, config, scores)


def _variant(name: str, value: Mapping) -> Variant:
    place = f'variants[{name!r}]'
    if not {*value} & {'options', 'after', 'title'}:
        value = dict(options=value)  # by its options alone
    if unknown := {*value} - {'options', 'after', 'title'}:
        raise ConfigError(
            f'{place} takes options, after and title, not {", ".join(sorted(map(str, unknown)))}'
        )
    options = _options(f'{place}.options', value.get('options', {}))
    return Variant(name, str(value.get('title', name)), options, value.get('after'))


def _options(place: str, value: object) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise ConfigError(f'{place} must be a dict of settings by their dotted keys')
    options = flat(value)
    for key, setting in options.items():
        parts = setting if isinstance(setting, Sequence) and not isinstance(setting, str) else ()
        for part in parts or (setting,):
            if not isinstance(part, (str, int, float, type(None))) and part != ():
                raise ConfigError(
                    f'{place}: {key}={setting!r} must be a text, a number, True, False, None, or a '
                    'list of these'
                )
    return options


def _check_chains(variants: Mapping[str, Variant]) -> None:
    for variant in variants.values():
        chain = [variant.name]
        while (after := variants[chain[-1]].after) is not None:
            if after not in variants:
                near = get_close_matches(str(after), variants, 1)
                way = f'did you mean {near[0]}?' if near else f'known: {", ".join(variants)}'
                raise ConfigError(
                    f'variants[{chain[-1]!r}]: there is no variant after={after!r}; {way}'
                )
            if after in chain:
                raise ConfigError(
                    f'variants[{variant.name!r}]: after goes in a circle: '
                    f'{" <- ".join([*chain, after])}'
                )
            chain.append(after)
