# UPerNet with half a KAT-T on the scenes of detection.py, and as long.
_base_ = '../../digits/kat_upernet_digits_gpu.py'

iters = 400
data_root = 'data/digit_scenes_study/'
side = 192
model = dict(
    data_preprocessor=dict(size=(side, side)),
    backbone=dict(arch=dict(embed_dims=192, num_layers=6, num_heads=3), img_size=side),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadCheckedLabelMap', num_classes=11),
    dict(type='PackByteSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadCheckedLabelMap', num_classes=11),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=16, num_workers=3, dataset=dict(data_root=data_root, pipeline=train_pipeline)
)
val_dataloader = dict(
    batch_size=20, num_workers=2, dataset=dict(data_root=data_root, pipeline=test_pipeline)
)
test_dataloader = val_dataloader

train_cfg = dict(max_iters=iters, val_interval=iters)
default_hooks = dict(
    logger=dict(interval=20), checkpoint=dict(interval=iters // 2, max_keep_ckpts=1)
)
log_processor = dict(window_size=20)
custom_hooks = [dict(type='EpochSeedHook'), dict(type='FiniteLossHook')]
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, end=iters),
]
