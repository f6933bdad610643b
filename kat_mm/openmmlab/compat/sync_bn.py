"""Lets mmcv's SyncBN, `MMSyncBN`, be built where there is one process.

mmengine turns such layers into BatchNorm where training is not distributed, but only once they are
built, and they ask for the number of processes before that.
"""

from types import ModuleType

from torch import distributed

from ...post_import import when_imported
from .once import replace


def build_sync_bn_in_one_process() -> None:
    """Tells mmcv's SyncBN that one process is one, as soon as it is imported."""
    when_imported('mmcv.ops.sync_bn', _count_one, "build mmcv's SyncBN in one process")


def _count_one(module: ModuleType) -> None:
    replace(module, 'dist', lambda _: _Distributed('torch.distributed'))


class _Distributed(ModuleType):
    """The module `torch.distributed` as mmcv's SyncBN sees it: all else is torch's own."""

    @staticmethod
    def get_world_size(group=None) -> int:
        """Returns the number of processes in a group, which is 1 before there are groups."""
        alone = group is None and not distributed.is_initialized()
        return 1 if alone else distributed.get_world_size(group)

    def __getattr__(self, name: str):
        return getattr(distributed, name)
