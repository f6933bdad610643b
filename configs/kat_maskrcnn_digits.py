# Mask R-CNN with a small KAT on the embedded data set: minutes on two CPU cores.
_base_ = [
    './_base_/mask_rcnn_vitdet.py',
    './_base_/digit_scenes_instance.py',
    './_base_/detection_runtime.py',
]

model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=96, num_layers=4, num_heads=3),
        img_size=128,
        patch=8,
        attention=dict(window_size=0),
        drop_path_rate=0.0,
    ),
    # Digits are 23 to 51 pixels high: three levels hold all their anchors, one all their features.
    neck=dict(in_channels=96, in_stride=8, out_channels=64, strides=(4, 8, 16), num_outs=3),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        num_convs=1,
        anchor_generator=dict(scales=[4], strides=[4, 8, 16]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            out_channels=64, featmap_strides=[4], roi_layer=dict(sampling_ratio=2)
        ),
        bbox_head=dict(
            type='Shared2FCBBoxHead',
            in_channels=64,
            fc_out_channels=256,
            num_classes=10,
            norm_cfg=None,
        ),
        mask_roi_extractor=dict(
            out_channels=64, featmap_strides=[4], roi_layer=dict(sampling_ratio=1)
        ),
        mask_head=dict(
            in_channels=64, conv_out_channels=64, num_convs=2, num_classes=10, norm_cfg=None
        ),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=300, max_per_img=200),
        rcnn=dict(sampler=dict(num=48)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=200), rcnn=dict(max_per_img=50)),
)

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=2, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='KATOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1.2e-3, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=2, convert_to_iter_based=True),
]
train_dataloader = dict(batch_size=4)
default_hooks = dict(logger=dict(interval=50))
