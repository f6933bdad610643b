# Mask R-CNN on a plain backbone, as ViTDet (arXiv 2203.16527) builds it: windowed attention but for
# four global blocks, a simple feature pyramid, layer norms in the heads.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

custom_imports = dict(imports=['kat_mm', 'kat_mm.models.roi_extractor'])
norm_cfg = dict(type='LN2d')
model = dict(
    backbone=dict(
        _delete_=True,
        type='KAT',
        arch='small',
        img_size=224,
        window_size=14,
        drop_path_rate=0.1,
    ),
    neck=dict(
        _delete_=True,
        type='SimplePyramid',
        in_channels=384,
        out_channels=256,
        num_outs=5,
    ),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_roi_extractor=dict(type='FullPrecisionRoIExtractor'),
        mask_roi_extractor=dict(type='FullPrecisionRoIExtractor'),
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)
