# The COCO config on generated scenes of COCO's size: to try it out or time it without COCO.
#   python tools/make_digit_scenes.py data/digit_scenes_800x1333 --size 800 1333 --train 64 --val 8
_base_ = '../kat_maskrcnn_coco.py'

data_root = 'data/digit_scenes_800x1333/'
metainfo = dict(classes=('0', '1', '2', '3', '4', '5', '6', '7', '8', '9'))
train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/train.json',
        data_prefix=dict(img='images/train/'),
    )
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/val.json',
        data_prefix=dict(img='images/val/'),
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/val.json')
test_evaluator = val_evaluator

classes = dict(num_classes=10)
model = dict(backbone=dict(init_cfg=None), roi_head=dict(bbox_head=classes, mask_head=classes))
param_scheduler = [dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000)]
default_hooks = dict(logger=dict(interval=10))
