"""Names of configs: paths, or `mmdet::detr/detr_r50_8xb2-150e_coco` for one inside a package."""

import difflib
from importlib.util import find_spec
from pathlib import Path

from ..errors import ConfigError

PACKAGES = ('kat_mm', 'mmdet', 'mmseg')  # where a path that is none may have been meant


def find_config(name: str) -> tuple[Path, str]:
    """Finds a config by its path, or by `PACKAGE::PATH` with or without `.py`.

    Returns:
        Its file, and the `_base_` by which another config inherits it: the name where a package
        ships it, else its absolute path.

    Raises:
        ConfigError: if there is none; it names the closest ones.
    """
    package, separator, inner = name.rpartition('::')
    packages = [package] if separator else PACKAGES
    folders = {key: folder for key in packages if (folder := configs_of(key))}
    if separator and not folders:
        raise ConfigError(f'config {name}: the package {package} has no configs or is missing')
    if separator:
        path = folders[package] / f'{inner.removesuffix(".py")}.py'
    else:
        path = Path(name).absolute()
    if not path.is_file():
        known = [f'{key}::{inside}' for key in folders for inside in _inside(folders[key])]
        if not separator:
            known += map(str, Path(name).parent.glob('*.py'))
        raise ConfigError(f'config {name} does not exist; {_hint(name, known)}')
    for key, folder in folders.items():
        if path.resolve().is_relative_to(folder.resolve()):
            return path, f'{key}::{path.resolve().relative_to(folder.resolve()).as_posix()}'
    return path, str(path)


def configs_of(package: str) -> Path | None:
    """Returns the folder of the configs that a package ships, if there is one."""
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.origin:
        return None
    root = Path(spec.origin).parent
    folders = [root / '.mim' / 'configs']  # where wheels of OpenMMLab's packages and ours have them
    if package == 'kat_mm':
        folders.append(root.parent / 'configs')  # beside the package in a clone
    return next((folder for folder in folders if folder.is_dir()), None)


def _inside(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob('*.py')]


def _hint(name: str, known: list[str]) -> str:
    def short(name_or_path: str) -> str:
        stem = name_or_path.removesuffix('.py')
        return stem.partition('::')[2] if '::' in name else stem.rpartition('/')[2]

    by_short = {short(key): key for key in known if '_base_/' not in key}
    close = [by_short[key] for key in difflib.get_close_matches(short(name), by_short, 3, 0.5)]
    ways = 'give a path, kat_mm::NAME or mmdet::FOLDER/NAME'
    return f'did you mean {" or ".join(close)}?' if close else ways
