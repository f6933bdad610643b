# Mask R-CNN with half a KAT-T on crowded digit scenes: a budget of a minute or two on a GPU, which
# leaves room above what is reached, so that differences can show. All images have one size.
#   python tools/make_digit_scenes.py data/digit_scenes_study --size 192 192 --train 3000 --val 300
#     --min-digits 4 --max-digits 9
_base_ = '../../digits/kat_maskrcnn_digits_gpu.py'

iters = 400
data_root = 'data/digit_scenes_study/'
side = 192
model = dict(
    backbone=dict(arch=dict(embed_dims=192, num_layers=6, num_heads=3), img_size=side),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackMasks'),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='Resize', scale=(side, side), keep_ratio=True
    ),  # tells what predictions are scaled by
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=16, num_workers=3, dataset=dict(data_root=data_root, pipeline=train_pipeline)
)
val_dataloader = dict(
    batch_size=20, num_workers=2, dataset=dict(data_root=data_root, pipeline=test_pipeline)
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/val.json')
test_evaluator = val_evaluator

train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=iters, val_interval=iters)
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=iters // 2, max_keep_ckpts=1),
)
log_processor = dict(by_epoch=False, window_size=20)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, end=iters),
]
