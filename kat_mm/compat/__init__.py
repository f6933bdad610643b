"""What lets today's torch run the OpenMMLab releases.

`install()` fills two gaps, each only where it is open:

- `mmcv.ops` needs the compiled module `mmcv._ext`, for which no wheel exists for a recent torch.
  Where none is installed, `mmcv_ext.py` stands in for it, with torchvision's kernels.
- `torch.load` refuses, since torch 2.6, the classes that mmengine's own checkpoints contain.
  `checkpoint.py` allows these, and nothing that could run code.
"""

from .checkpoint import allow_mmengine_checkpoints
from .finder import install_mmcv_ext_finder


def install() -> None:
    """Make mmcv's ops and mmengine's checkpoints usable in this process.

    Safe to call any number of times. It imports neither mmcv nor torchvision, does nothing about
    a package that is not installed, and gives way to a compiled mmcv wherever there is one.
    """
    install_mmcv_ext_finder()
    allow_mmengine_checkpoints()


__all__ = ['install']
