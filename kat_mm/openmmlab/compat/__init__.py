"""What lets today's torch run the OpenMMLab releases.

`install()` fills these gaps, each only where it is open:

- `mmcv.ops` needs the compiled module `mmcv._ext`, for which no wheel exists for a recent torch.
  Where none is installed, `mmcv_ext.py` stands in for it, with torchvision's kernels.
- `torch.load` refuses, since torch 2.6, the classes that mmengine's own checkpoints contain.
  `checkpoint.py` allows these, and nothing that could run code.
- mmengine reads what it downloads unsafely, and `load_from` takes only weights of whole models, or
  of any other what has the right shape. `load_from.py` lets it take those of a bare KAT too, and
  refuses those of another architecture.
- mmdet's and mmseg's transformer layers take no `type` in their `ffn_cfg`. `ffn.py` lets mmcv's
  FFN, which they call, honour it.
- mmengine does not find the configs of mmsegmentation's maintained fork; `forks.py` has it do so.
"""

from .checkpoint import allow_mmengine_checkpoints
from .ffn import honour_ffn_type
from .finder import install_mmcv_ext_finder
from .forks import find_configs_of_forks
from .load_from import let_backbones_load


def install() -> None:
    """Make mmcv's ops, mmengine's checkpoints and FFNs by type usable in this process.

    Safe to call any number of times. It imports neither mmcv nor torchvision, does nothing about
    a package that is not installed, and gives way to a compiled mmcv wherever there is one.
    """
    install_mmcv_ext_finder()
    allow_mmengine_checkpoints()
    let_backbones_load()
    honour_ffn_type()
    find_configs_of_forks()


__all__ = ['install']
