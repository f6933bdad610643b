# COCO 2017 at 800x1333 with instance masks. Images are read by a loader that names corrupt files,
# and masks leave the loader's workers as bits.
_base_ = 'mmdet::_base_/datasets/coco_instance.py'

train_pipeline = [
    dict(type='LoadCheckedImage', backend_args={{_base_.backend_args}}),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackMasks'),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,  # a thread of its own takes the batches from the workers
    collate_fn=dict(type='compact_collate'),
    dataset=dict(pipeline=train_pipeline),
)
val_evaluator = dict(type='RunLengthCocoMetric')
test_evaluator = val_evaluator
