"""Lets configs inherit from those of the maintained forks, the onedl-* packages."""

from importlib.metadata import PackageNotFoundError, distribution


def find_configs_of_forks() -> None:
    """Let mmengine find `_base_ = 'mmseg::...'` where onedl-mmsegmentation is installed.

    mmengine looks for the package mmsegmentation, under which the fork is not known; by the name
    of the module it finds both. Nothing happens where mmengine is missing or the release is there.
    """
    try:
        distribution('onedl-mmsegmentation')
        from mmengine.config.utils import MODULE2PACKAGE
    except (PackageNotFoundError, ModuleNotFoundError):
        return
    MODULE2PACKAGE['mmseg'] = 'mmseg'
