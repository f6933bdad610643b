# ADE20K in crops of 512x512. Images and label maps are read by loaders that name bad files.
_base_ = 'mmseg::_base_/datasets/ade20k.py'

label_maps = dict(type='LoadCheckedLabelMap', num_classes=150)
train_pipeline = [
    dict(type='LoadCheckedImage'),
    label_maps,
    dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackByteSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    label_maps,
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,  # a thread of its own takes the batches from the workers
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
