# Mask R-CNN on a plain backbone, as arXiv 2111.11429 builds it: windowed attention but for four
# global blocks, whose maps a neck brings to strides 4, 8, 16 and 32 for mmdet's FPN.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

custom_imports = dict(imports=['kat_mm.openmmlab'])
model = dict(
    data_preprocessor=dict(type='BatchedDetDataPreprocessor'),
    backbone=dict(
        _delete_=True,
        type='KAT',
        arch='small',
        img_size=224,
        attention=dict(type='softmax', window_size=14),
        out_indices=(2, 5, 8, 11),
        drop_path_rate=0.1,
    ),
    neck=dict(
        _delete_=True,
        type='RescalingFPN',
        in_channels=384,
        out_channels=256,
        num_outs=5,
        channels_last=True,
    ),
    rpn_head=dict(type='BatchedRPNHead', num_convs=2),
    roi_head=dict(
        type='BatchedRoIHead',
        bbox_roi_extractor=dict(type='FullPrecisionRoIExtractor'),
        mask_roi_extractor=dict(type='FullPrecisionRoIExtractor'),
    ),
)
