# KAT-T on digit scenes at twice their size, for a GPU: minutes to a box AP above 0.8.
#   python tools/make_digit_scenes.py data/digit_scenes_large --train 3200 --val 200
_base_ = '../kat_maskrcnn_digits.py'

epochs = 9
data_root = 'data/digit_scenes_large/'
scale = (256, 256)
model = dict(
    backbone=dict(arch=dict(embed_dims=192, num_layers=12, num_heads=3), img_size=256),
    neck=dict(in_channels=192, out_channels=128),
    rpn_head=dict(
        in_channels=128,
        feat_channels=128,
        anchor_generator=dict(scales=[8]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=128, roi_layer=dict(sampling_ratio=0)),
        bbox_head=dict(in_channels=128, fc_out_channels=512),
        mask_roi_extractor=dict(out_channels=128, roi_layer=dict(sampling_ratio=0)),
        mask_head=dict(in_channels=128, conv_out_channels=128, num_convs=4),
    ),
    train_cfg=dict(rcnn=dict(sampler=dict(num=96))),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackMasks'),
    dict(type='RandomResize', scale=scale, ratio_range=(0.75, 1.0), keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=12,
    pin_memory=True,  # a thread of its own takes the batches from the workers
    dataset=dict(data_root=data_root, pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/val.json')
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=epochs, val_interval=3)
default_hooks = dict(logger=dict(interval=20))
optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='bfloat16',
    loss_scale=dict(enabled=False),  # bf16 has the range of fp32
    optimizer=dict(lr=8e-4, fused=True),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=epochs, convert_to_iter_based=True),
]
