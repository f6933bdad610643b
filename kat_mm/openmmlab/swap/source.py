"""Reads configs, and writes changed ones as small files that inherit the old ones."""

import keyword
import os
import tempfile
from pathlib import Path

from mmengine.config import Config

from ...errors import ConfigError, one_line
from ..config_names import find_config

WIDTH = 100


def read_config(name: str) -> tuple[Config, str]:
    """Reads a config, and returns it with the `_base_` by which another one inherits it.

    Args:
        name: path of a config, or `mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco`, with or
            without `.py`, for one that ships inside a package.

    Raises:
        ConfigError: if there is none, with the closest names, or if it cannot be read.
    """
    _, base = find_config(name)
    try:
        return _load(base), base
    except Exception as error:  # configs are programs
        raise ConfigError(f'config {name} cannot be read: {one_line(error)}') from error


def write_config(config: Config, base: str, path: Path, comment: str = '') -> None:
    """Writes a config that was read by `read_config` and changed since.

    The file inherits the old config and overrides what has changed. Where that does not give the
    same settings, as with bases that no text config can inherit, it holds all of them itself.

    Raises:
        ConfigError: if the path exists already, or a setting has no Python source.
    """
    if path.exists():
        raise ConfigError(f'{path} exists already: remove it, or choose another file')
    path.parent.mkdir(parents=True, exist_ok=True)
    new = config.to_dict()
    # The path from the new file to the old one; names of packages stay as they are.
    line = base if '::' in base else Path(os.path.relpath(base, path.parent)).as_posix()
    inherited = {'_base_': line, **overrides(_load(base).to_dict(), new)}
    for settings in (inherited, new):
        lines = [
            f'{name} = {source(value, 0, len(name) + 3)}\n' for name, value in settings.items()
        ]
        lines.insert('_base_' in settings, '\n')
        path.write_text(comment + ''.join(lines))
        try:
            if _load(str(path)).to_dict() == new:
                return
        except Exception:  # a base that cannot be inherited raises errors of many kinds
            pass
    path.unlink()
    raise ConfigError(f'the config cannot be written to {path}: it has values without a source')


def overrides(old: dict, new: dict) -> dict:
    """Returns what a config that inherits `old` has to say to be `new`."""
    changed = {}
    for key, value in new.items():
        if key not in old:
            changed[key] = value
        elif isinstance(value, dict) and isinstance(old[key], dict):
            if set(old[key]) <= set(value):
                if inner := overrides(old[key], value):
                    changed[key] = inner
            elif old[key] != value:
                changed[key] = {'_delete_': True, **value}
        elif isinstance(value, dict):
            changed[key] = {'_delete_': True, **value}
        elif value != old[key] or type(value) is not type(old[key]):
            changed[key] = value
    return changed


def source(value, indent: int = 0, column: int = 0) -> str:
    """Returns Python source of a config value, on one line where it fits.

    Args:
        value: a value as configs have them.
        indent: indentation of the line.
        column: where on the line the value begins.
    """
    if isinstance(value, dict) and all(_is_name(key) for key in value):
        start, end = 'dict(', ')'
        items = [(f'{key}=', child) for key, child in value.items()]
    elif isinstance(value, dict):
        start, end = '{', '}'
        items = [(f'{key!r}: ', child) for key, child in value.items()]
    elif isinstance(value, list | tuple):
        start, end = '[]' if isinstance(value, list) else '()'
        items = [('', child) for child in value]
    else:
        return repr(value)
    single = ',' if isinstance(value, tuple) and len(value) == 1 else ''
    flat = start + ', '.join(name + source(child) for name, child in items) + single + end
    if column + len(flat) < WIDTH or not column:
        return flat
    indent += 4
    lines = [
        f'{" " * indent}{name}{source(child, indent, indent + len(name))},\n'
        for name, child in items
    ]
    return f'{start}\n{"".join(lines)}{" " * (indent - 4)}{end}'


def _load(base: str) -> Config:
    """Reads a config as one that inherits it would, without importing its custom modules."""
    if '::' not in base:
        return Config.fromfile(base, import_custom_modules=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'config.py')
        path.write_text(f'_base_ = {base!r}\n')
        return Config.fromfile(path, import_custom_modules=False)


def _is_name(key) -> bool:
    return isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key)
