"""Settings of a config from the command line: KEY=VALUE, checked before they are put in."""

import inspect
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module

import mmengine.registry
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import DefaultScope, Registry
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..errors import ConfigError
from ..models.arguments import MOVED

BRACKETS = {'(': ')', '[': ']'}
EXAMPLE = 'train_cfg.max_epochs=12'
# What mmengine and the tools read of a config besides Runner's arguments.
READ_BY_NAME = (
    *('activation_checkpointing', 'compile', 'custom_imports', 'efficient_conv_bn_eval'),
    *('find_unused_parameters', 'gpu_ids', 'init_weights_for_test_or_val', 'model_wrapper_cfg'),
    *('runner_type', 'strategy', 'sync_bn', 'tta_model', 'tta_pipeline'),
)
# What builders take out of a dict before its class gets the rest.
TAKEN_BY_BUILDERS = (
    *('type', '_scope_', '_delete_', 'priority', 'convert_to_iter_based', 'constructor'),
    *('paramwise_cfg', 'requires_grad', 'init_cfg', 'by_epoch', 'layer', 'num_batch_per_epoch'),
    *MOVED,  # the backbone itself says where to
)


def parse_settings(texts: Sequence[str]) -> dict[str, object]:
    """Returns the settings that KEY=VALUE arguments give, by their dotted keys.

    Values are read as mmengine's DictAction reads them (numbers, true, false, None, text, and
    lists of these with commas or brackets), but keep their spaces. What stands in quotes is one
    text or number, whatever commas and brackets it has.

    Raises:
        ConfigError: for an argument without a key or `=`, and for brackets without their like.
    """
    settings = {}
    for text in texts:
        key, separator, value = text.partition('=')
        if not separator:
            raise ConfigError(
                f'--cfg-options {text}: must be KEY=VALUE, such as {EXAMPLE}; a value with spaces '
                'stands in quotes'
            )
        if not all(key.split('.')) or key != key.strip():
            raise ConfigError(
                f'--cfg-options {text}: {key!r} is no key such as train_cfg.max_iters'
            )
        try:
            settings[key] = _parse(value)
        except ValueError as error:
            raise ConfigError(
                f'--cfg-options {text}: {error}; a text with brackets stands in quotes: '
                f'{key}=\'"..."\''
            ) from None
    return settings


def _parse(given: str) -> object:
    text = given.strip()
    inside = text[1:-1]
    if len(text) > 1 and text[0] == text[-1] and text[0] in '"\'' and text[0] not in inside:
        is_list = inside[:1] in BRACKETS and inside[-1:] == BRACKETS[inside[0]]
        return _parse(inside) if is_list else _atom(inside)
    parts = _split(text)
    if len(parts) == 1 and text[:1] in BRACKETS and text[-1] == BRACKETS[text[0]]:
        with suppress(ValueError):  # as in '(a) b (c)'
            values = [_parse(part) for part in _split(inside) if part]
            return tuple(values) if text[0] == '(' else values
    return [_parse(part) for part in parts if part] if len(parts) > 1 else _atom(given)


def _split(text: str) -> list[str]:
    """Splits a text at the commas outside of brackets and quotes.

    Raises:
        ValueError: for brackets and quotes that are not closed, or not opened.
    """
    parts, closing, quote = [''], [], ''
    for i, char in enumerate(text):
        if char == ',' and not closing and not quote:
            parts.append('')
            continue
        parts[-1] += char
        if quote:
            quote = '' if char == quote else quote
        elif char in '"\'' and not parts[-1][:-1].strip(' ([,'):
            quote = char
        elif char in BRACKETS:
            closing.append(BRACKETS[char])
        elif char in BRACKETS.values() and (not closing or closing.pop() != char):
            raise ValueError(f'{char!r} after {text[:i]!r} closes nothing')
    if closing or quote:
        raise ValueError(f'{text!r} lacks {(quote or closing[-1])!r} at its end')
    return [part.strip() for part in parts]


def _atom(text: str) -> int | float | bool | str | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    words = {'true': True, 'false': False, 'none': None}
    word = text.strip()
    return words[word.lower()] if word.lower() in words and word != 'none' else text


def apply_settings(config: Config, settings: dict[str, object]) -> None:
    """Puts settings into a config, each after a check that something takes it.

    Raises:
        ConfigError: names the key or type that is not known, with the nearest that is; the index
            outside of its list; or the value of a wrong type.
    """
    scope = DefaultScope.overwrite_default_scope(config.get('default_scope') or 'mmengine')
    with scope:
        # A type first, so that the other keys are those of its class.
        for key in sorted(settings, key=lambda key: not key.endswith('.type')):
            _check(config, key, settings[key])
            config.merge_from_dict({key: settings[key]})


def _check(config: Config, key: str, value: object) -> None:
    parts = key.split('.')
    node, owner = config._cfg_dict, config._cfg_dict
    for i, part in enumerate(parts):
        place = '.'.join(parts[:i])
        owner, is_last = node, i == len(parts) - 1
        if isinstance(owner, list):
            if not part.isdecimal() or int(part) >= len(owner):
                numbers = f'0 to {len(owner) - 1}' if owner else 'nothing, as it is empty'
                raise ConfigError(
                    f'--cfg-options {key}: {place} is a list of {len(owner)}, so that {part!r} '
                    f'must be one of {numbers}'
                )
            node = owner[int(part)]
        elif not isinstance(owner, dict):
            raise ConfigError(
                f'--cfg-options {key}: {place} is {owner!r}, in which there is no {part}; set '
                f'{place} as a whole'
            )
        elif part in owner:
            node = owner[part]
            if node is None and not is_last:
                node = owner[part] = ConfigDict()
        else:
            _check_new_key(owner, part, key, place)
            if not is_last:
                return  # what is in a new dict is checked by who takes it
            node = None
        if is_last:
            if part == 'type' and isinstance(value, str) and _classes(owner.get('type')):
                check_type(value, owner.get('type'), f'--cfg-options {key}')
            _check_value(owner, part, node, value, key, place)
    if len(parts) == 1:
        _warn_of_variable(config, key, value)


def _check_new_key(owner: dict, part: str, key: str, place: str) -> None:
    is_top = not place
    if is_top:
        known, closed = {*inspect.signature(Runner).parameters, *READ_BY_NAME}, True
    else:
        known, closed = _arguments(_kind(owner, place))
    near = get_close_matches(part, {*known, *owner}, 1, 0.6 if closed else 0.8)
    if part in known or part in TAKEN_BY_BUILDERS or not (closed or near):
        return
    kind = None if is_top else _kind(owner, place)
    kind = getattr(kind, '__name__', kind)
    who = f'{kind} takes no {part}' if kind else f'there is no {part} in {place or "a config"}'
    names = sorted({*known, *(owner if not is_top else ())} - {'type', 'self'})
    way = f'did you mean {near[0]}?' if near else f'known: {", ".join(names)}'
    raise ConfigError(f'--cfg-options {key}: {who}; {way}')


def _kind(owner: dict, place: str) -> object:
    """Returns the type of a dict, also of one that the runner knows by its place."""
    if 'type' in owner:
        return owner['type']
    if place == 'train_cfg':
        return 'EpochBasedTrainLoop' if owner.get('by_epoch') else 'IterBasedTrainLoop'
    return DataLoader if re.fullmatch(r'\w+_dataloader', place) else None


def _arguments(kind: object) -> tuple[set[str], bool]:
    """Returns the names that a type takes, and whether these are all."""
    names, closed = set(), False
    for found in _classes(kind):
        closed = True
        for function in _constructors(found):
            try:
                parameters = inspect.signature(function).parameters.values()
            except (TypeError, ValueError):  # written in C
                return names, False
            names |= {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
            if not any(p.kind == p.VAR_KEYWORD for p in parameters):
                break
        else:
            return names, False
    return names, closed


def _constructors(kind: object) -> Iterator:
    """Yields what is called to build a class, and where it passes arguments on, what then is."""
    if not inspect.isclass(kind):
        yield kind
        return
    for base in kind.__mro__[:-1]:
        if '__init__' in vars(base):
            yield vars(base)['__init__']


def _registries() -> list[Registry]:
    """Returns the registries of the current scope; what they lack, their parents may have."""
    scope = DefaultScope.get_current_instance().scope_name
    with suppress(ImportError):
        import_module(f'{scope}.registry')
    roots = [root for root in vars(mmengine.registry).values() if isinstance(root, Registry)]
    return [root.children.get(scope, root) for root in roots]


def _classes(kind: object) -> list:
    """Returns all that a type may mean; there are few names that several registries have."""
    if not isinstance(kind, str):
        return [kind] if callable(kind) else []
    found = []
    for registry in _registries():
        with suppress(RuntimeError):  # of a dotted name that cannot be imported
            found.append(registry.get(kind))
    return [kind for kind in found if kind is not None]


def check_type(new: str, old: object, key: str) -> None:
    """Checks that a type is registered, in the current scope.

    Args:
        new: its name.
        old: another type of its kind, among which names like it are looked for; None for all.
        key: what messages call it.

    Raises:
        ConfigError: if it is not, with the names closest to it.
    """
    if _classes(new):
        return
    old = getattr(old, '__name__', old)
    known = set()
    for registry in _registries():
        names = names_in(registry)
        if old is None or old.rpartition('.')[2] in names:
            known |= names
    way = nearest(new, known, 'its module must be in custom_imports')
    raise ConfigError(f'{key}={new}: there is no {new}; {way}')


def names_in(registry: Registry | None) -> set[str]:
    """Returns the names that a registry and those above it know."""
    names = set()
    while registry is not None:
        registry.import_from_location()
        names |= set(registry.module_dict)
        registry = registry.parent
    return names


def nearest(name: str, known: set[str], otherwise: str) -> str:
    """Returns the question whether one of the names like it was meant, or else another way out."""
    near = get_close_matches(name, sorted(known), 3, 0.6)
    return f'did you mean {" or ".join(near)}?' if near else otherwise


def _check_value(owner: object, part: str, old: object, new: object, key: str, place: str) -> None:
    """Checks the type of a value, as far as an annotation or the value before tells it."""
    kind = _kind(owner, place) if isinstance(owner, dict) else None
    parameter = _parameter(kind, part)
    default = getattr(parameter, 'default', None)
    words = set(re.findall(r'\w+', str(getattr(parameter, 'annotation', ''))))
    old = default if old is None else old
    takes_text = isinstance(default, str) or bool(words & {'str', 'Any'})
    if new is None or (isinstance(new, str) and takes_text) or isinstance(new, tuple):
        return
    if isinstance(old, bool) or words == {'class', 'bool'}:
        wanted = None if new in (True, False) or isinstance(new, list) else 'true or false'
    elif 'int' in words and 'float' not in words and not isinstance(old, float):
        is_whole = isinstance(new, int | float) and not isinstance(new, bool) and new == int(new)
        is_sequence = isinstance(new, list) and words != {'class', 'int'}
        wanted = None if is_whole or is_sequence else 'a whole number'
    elif isinstance(old, int | float) or 'float' in words:
        wanted = 'a number' if isinstance(new, str | bool) else None
    elif isinstance(old, dict) and ('.' not in key or 'type' in old):
        is_name = isinstance(new, str) and '.' in key  # a part by its type alone
        wanted = None if isinstance(new, dict) or is_name else 'a dict, set by its keys'
    elif isinstance(old, list) and old and isinstance(old[0], dict):
        wanted = None if isinstance(new, list | tuple) else 'a list, set by its indices'
    else:
        wanted = None
    if wanted:
        raise ConfigError(f'--cfg-options {key}={new}: must be {wanted}')


def _parameter(kind: object, name: str) -> inspect.Parameter | None:
    """Returns the argument of that name which the class of a type takes, if it has one."""
    for function in (f for found in _classes(kind) for f in _constructors(found)):
        with suppress(TypeError, ValueError):  # written in C
            if name in (parameters := inspect.signature(function).parameters):
                return parameters[name]
    return None


def _warn_of_variable(config: Config, key: str, value: object) -> None:
    """Warns of a setting that only the config file itself has read, as it was loaded."""
    if key in READ_BY_NAME or key in inspect.signature(Runner).parameters:
        return
    old = config[key]
    places = [place for place, found in leaves(config._cfg_dict) if found == old and '.' in place]
    if isinstance(old, str | int | float) and places and not isinstance(old, bool):
        shown = ', '.join(f'{place}={value}' for place in places[:4])
        print_log(
            f'--cfg-options {key}={value}: only the config file reads {key}, and has done so; for '
            f'an effect set {shown}',
            level=logging.WARNING,
        )


def leaves(node: object, place: str = '') -> Iterator[tuple[str, object]]:
    """Yields all that is no dict or list in settings, with its dotted key."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        inner = f'{place}.{key}' if place else str(key)
        if isinstance(value, dict | list):
            yield from leaves(value, inner)
        else:
            yield inner, value
