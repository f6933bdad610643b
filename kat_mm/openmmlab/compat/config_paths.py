"""Lets configs inherit from those of kat_mm, and of any package without pkg_resources.

mmengine resolves `_base_ = 'PACKAGE::PATH'` for the packages in a list of its own, which lacks
kat_mm and knows mmseg by the name of the release alone, not of its maintained fork. It asks
pkg_resources where they are, which setuptools has dropped; and it takes only what is in a folder.
"""

from mmengine.config import Config

from ..config_names import configs_of, find_config
from .once import replace


def find_configs_in_packages() -> None:
    """Lets mmengine find a base config where its package ships it."""
    replace(Config, '_get_cfg_path', _look_into_packages)


def _look_into_packages(get_cfg_path):
    """Returns mmengine's function from the name of a base to its path and scope."""

    def look_into_packages(name: str, filename: str) -> tuple[str, str | None]:
        package, separator, inner = name.partition('::')
        if package == 'kat_mm' and separator:
            # No scope, which would be that of all types in it: they are registered with mmengine
            # itself or in the config's default_scope, as where the base is given by its path.
            return str(find_config(name)[0]), None
        folder = configs_of(package) if separator else None
        if folder and (folder / inner).is_file():
            return str(folder / inner), package
        return get_cfg_path(name, filename)

    return look_into_packages
