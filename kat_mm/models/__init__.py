"""The KAT backbone and its parts, registered in mmengine's root registry where it is installed."""

from importlib.util import find_spec

from .gr_kan import GRKAN
from .pyramid import LayerNorm2d, SimplePyramid

__all__ = ['GRKAN', 'SimplePyramid']

# Everything but the backbone is plain PyTorch, so that other frameworks can use it.
if find_spec('mmengine') is not None:
    from mmengine.registry import MODELS

    from ..rational.layer import GroupRational
    from .kat import ARCHS, KAT

    for _module in (GroupRational, GRKAN, SimplePyramid):
        MODELS.register_module(module=_module)
    # The name that pyramids and heads of OpenMMLab know it by, in norm_cfg.
    MODELS.register_module('LN2d', module=LayerNorm2d)
    __all__ += ['ARCHS', 'KAT']
