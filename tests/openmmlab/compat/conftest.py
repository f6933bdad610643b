from mmcv_ops import COMPILED

import kat_mm.openmmlab.compat

kat_mm.openmmlab.compat.install()

# With a compiled mmcv, which goes before kat_mm's ops, there are none of these to test.
collect_ignore = []
if COMPILED:
    ops = ('deform_conv', 'focal_loss', 'ms_deform_attn', 'nms', 'psamask', 'roi_align')
    collect_ignore = [f'test_compat_{subject}.py' for subject in ('install', *ops)]
