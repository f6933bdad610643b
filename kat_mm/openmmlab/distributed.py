"""Training and testing in several processes, on a machine without GPUs too."""

import logging
from collections.abc import Callable

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.registry import MODEL_WRAPPERS
from torch import nn


def distribute_on_cpu(config: Config) -> None:
    """Joins the processes that torchrun has started; mmengine itself asks for a GPU for each."""
    torch.distributed.init_process_group('gloo')
    wrapper = dict(
        type='CPUDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=config.get('find_unused_parameters', False),
    )
    own = dict(config.get('model_wrapper_cfg') or {})
    if own.get('type') in ('MMDistributedDataParallel', MMDistributedDataParallel):
        del own['type']
    config.model_wrapper_cfg = {**wrapper, **own}


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """MMDistributedDataParallel without GPUs.

    Batch norms that are synchronised between GPUs, which need these, become those of each process,
    as mmengine has them in a single one.
    """

    def __init__(self, module: nn.Module, device_ids: list[int] | None = None, **kwargs):
        if any('SyncBatchNorm' in type(part).__name__ for part in module.modules()):
            print_log(
                'no GPU: SyncBN becomes BN, with statistics over the images of each process',
                'current',
                logging.WARNING,
            )
            module = revert_sync_batchnorm(module)
        super().__init__(module, **kwargs)


def use_ddp(config: Config) -> None:
    """Has a config train by DistributedDataParallel."""
    config.launcher = 'pytorch'
    if get_device() == 'cpu':
        distribute_on_cpu(config)


# What has a config train in several processes, by name. Each of these has been told which it is by
# RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; the runner is built from it then.
ENGINES: dict[str, Callable[[Config], None]] = {'ddp': use_ddp}
