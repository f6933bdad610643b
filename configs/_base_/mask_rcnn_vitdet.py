# The same as ViTDet (arXiv 2203.16527) builds it: a simple feature pyramid of the last block's map,
# layer norms in the heads.
_base_ = './mask_rcnn.py'

norm_cfg = dict(type='LN2d', eps=1e-6)
model = dict(
    backbone=dict(out_indices=None),
    neck=dict(
        _delete_=True,
        type='SimplePyramid',
        in_channels=384,
        out_channels=256,
        num_outs=5,
    ),
    roi_head=dict(
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)
