# UPerNet with a small KAT on the embedded data set: minutes on two CPU cores.
_base_ = [
    './_base_/upernet.py',
    './_base_/digit_scenes_semantic.py',
    './_base_/segmentation_runtime.py',
]

iters = 2400
# Nine pixels in ten are background. The less they weigh, the sooner the digits are told apart; the
# auxiliary head, which only teaches, goes further than the one that predicts.
digits = [1.0] * 10
model = dict(
    data_preprocessor=dict(size=(80, 80)),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=96, num_layers=4, num_heads=3),
        img_size=128,
        patch=8,
        out_indices=None,
        drop_path_rate=0.0,
    ),
    # Digits are 23 to 51 pixels high: three levels see them whole.
    neck=dict(
        _delete_=True,
        type='SimplePyramid',
        in_channels=96,
        out_channels=64,
        in_stride=8,
        strides=(4, 8, 16),
    ),
    decode_head=dict(
        in_channels=[64, 64, 64],
        in_index=[0, 1, 2],
        channels=64,
        num_classes=11,
        dropout_ratio=0.0,
        norm_cfg=dict(type='BN'),
        loss_decode=dict(type='WeightedCrossEntropyLoss', class_weight=[0.2, *digits]),
    ),
    auxiliary_head=dict(
        in_channels=64,
        in_index=1,
        channels=64,
        num_classes=11,
        dropout_ratio=0.0,
        norm_cfg=dict(type='BN'),
        loss_decode=dict(
            type='WeightedCrossEntropyLoss', class_weight=[0.1, *digits], loss_weight=1.0
        ),
    ),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadCheckedLabelMap', num_classes=11),
    dict(type='RandomCrop', crop_size=(80, 80)),
    dict(type='PackSegInputs'),
]
# Reading a batch takes a tenth of a step: a process for it would only compete for the two cores.
train_dataloader = dict(
    batch_size=8, num_workers=0, persistent_workers=False, dataset=dict(pipeline=train_pipeline)
)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=iters, val_interval=iters // 2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='KATOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=2.5e-3, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, end=iters),
]
default_hooks = dict(checkpoint=dict(interval=iters))
