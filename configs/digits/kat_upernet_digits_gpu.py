# KAT-T on digit scenes at twice their size, for minutes on a GPU.
#   python tools/make_digit_scenes.py data/digit_scenes_large --train 3200 --val 200
_base_ = '../kat_upernet_digits.py'

iters = 2600
data_root = 'data/digit_scenes_large/'
scale = (256, 256)
model = dict(
    data_preprocessor=dict(size=scale),
    backbone=dict(arch=dict(embed_dims=192, num_layers=12, num_heads=3), img_size=256),
    # The digits are twice as large, so there is a level more.
    neck=dict(in_channels=192, out_channels=128, strides=(4, 8, 16, 32)),
    decode_head=dict(in_channels=[128] * 4, in_index=[0, 1, 2, 3], channels=128),
    auxiliary_head=dict(in_channels=128, channels=128),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadCheckedLabelMap', num_classes=11),
    dict(type='RandomResize', scale=scale, ratio_range=(1.0, 1.25), keep_ratio=True),
    dict(type='RandomCrop', crop_size=scale),
    dict(type='PackByteSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadCheckedLabelMap', num_classes=11),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=12,
    persistent_workers=True,
    pin_memory=True,  # a thread of its own takes the batches from the workers
    dataset=dict(data_root=data_root, pipeline=train_pipeline),
)
val_dataloader = dict(num_workers=4, dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=iters, val_interval=1300)
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(interval=1300))
optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='bfloat16',
    loss_scale=dict(enabled=False),  # bf16 has the range of fp32
    optimizer=dict(lr=1e-3, fused=True),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=200, end=iters),
]
