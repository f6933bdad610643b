"""The progress line of training, with memory on the CPU too."""

import sys

import torch
from mmengine.registry import LOG_PROCESSORS
from mmengine.runner import LogProcessor

try:
    import resource
except ModuleNotFoundError:  # as on Windows
    resource = None


@LOG_PROCESSORS.register_module()
class MemoryLogProcessor(LogProcessor):
    """Adds the peak memory of the process, in MiB, to the line where there is no GPU to report.

    Where Python cannot tell it, as on Windows, lines stay as they are.
    """

    def get_log_after_iter(self, runner, batch_idx: int, mode: str) -> tuple[dict, str]:
        tag, line = super().get_log_after_iter(runner, batch_idx, mode)
        if mode == 'train' and resource and not torch.cuda.is_available():
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            tag['memory'] = peak // (2**20 if sys.platform == 'darwin' else 2**10)
            line += f'  memory: {tag["memory"]}'
        return tag, line
