"""Stands in for mmcv's compiled module `mmcv._ext` (see finder.py, which loads it by that name).

Each function has the name, the arguments and the output buffers with which the Python half of
mmcv 2.x calls its compiled half. An op that is not among them is still an attribute, since
`mmcv.ops` checks at import that every op exists, and raises when it is called.
"""

import torchvision

from kat_mm.openmmlab.compat.mmcv_ops.carafe import (
    carafe_backward,
    carafe_forward,
    carafe_naive_backward,
    carafe_naive_forward,
)
from kat_mm.openmmlab.compat.mmcv_ops.deform_conv import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from kat_mm.openmmlab.compat.mmcv_ops.deform_roi_pool import (
    deform_roi_pool_backward,
    deform_roi_pool_forward,
)
from kat_mm.openmmlab.compat.mmcv_ops.focal_loss import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)
from kat_mm.openmmlab.compat.mmcv_ops.masked_conv import (
    masked_col2im_forward,
    masked_im2col_forward,
)
from kat_mm.openmmlab.compat.mmcv_ops.ms_deform_attn import (
    ms_deform_attn_backward,
    ms_deform_attn_forward,
)
from kat_mm.openmmlab.compat.mmcv_ops.nms import nms, nms_match, softnms
from kat_mm.openmmlab.compat.mmcv_ops.psamask import psamask_backward, psamask_forward
from kat_mm.openmmlab.compat.mmcv_ops.roi_align import roi_align_backward, roi_align_forward
from kat_mm.openmmlab.compat.mmcv_ops.sync_bn import (
    sync_bn_backward_data,
    sync_bn_backward_param,
    sync_bn_forward_mean,
    sync_bn_forward_output,
    sync_bn_forward_var,
)

__all__ = [
    'carafe_backward',
    'carafe_forward',
    'carafe_naive_backward',
    'carafe_naive_forward',
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'deform_conv_forward',
    'deform_roi_pool_backward',
    'deform_roi_pool_forward',
    'masked_col2im_forward',
    'masked_im2col_forward',
    'modulated_deform_conv_backward',
    'modulated_deform_conv_forward',
    'ms_deform_attn_backward',
    'ms_deform_attn_forward',
    'nms',
    'nms_match',
    'psamask_backward',
    'psamask_forward',
    'roi_align_backward',
    'roi_align_forward',
    'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward',
    'softmax_focal_loss_backward',
    'softmax_focal_loss_forward',
    'softnms',
    'sync_bn_backward_data',
    'sync_bn_backward_param',
    'sync_bn_forward_mean',
    'sync_bn_forward_output',
    'sync_bn_forward_var',
]

# The ops that `mmcv.ops` has asked for and that are not among them.
NOT_SUPPLIED: set[str] = set()


def get_compiler_version() -> str:
    """The text that mmcv's environment report shows as its compiler."""
    return f'none (kat_mm.openmmlab.compat on torchvision {torchvision.__version__})'


def get_compiling_cuda_version() -> str:
    """The text that mmcv's environment report shows as the CUDA version of its ops."""
    return 'none'


def __getattr__(name: str):
    # Python itself and debuggers probe modules for names with leading underscores; no op has one.
    if name.startswith('_'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    NOT_SUPPLIED.add(name)

    def not_supplied(*args, **kwargs):
        raise NotImplementedError(
            f'the mmcv op {name!r} needs a compiled mmcv, and none is installed. Either install '
            'an mmcv that is compiled for this torch '
            '(https://mmcv.readthedocs.io/en/latest/get_started/installation.html), or choose a '
            'model that needs only the ops that kat_mm supplies on top of torchvision: '
            f'{", ".join(__all__)}'
        )

    not_supplied.__name__ = not_supplied.__qualname__ = name
    return not_supplied
