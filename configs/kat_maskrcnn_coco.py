# Mask R-CNN with KAT-S on COCO: 36 epochs at 800x1333 from ImageNet-pretrained weights.
_base_ = [
    './_base_/mask_rcnn.py',
    './_base_/coco_instance.py',
    './_base_/schedule_36e.py',
    './_base_/detection_runtime.py',
]

pretrained = 'checkpoints/kat_small_patch16_224.pth'
model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=pretrained)))
