# UPerNet with KAT-S on ADE20K: 160k iterations at 512x512 from ImageNet-pretrained weights.
_base_ = [
    './_base_/upernet.py',
    './_base_/ade20k.py',
    './_base_/schedule_160k.py',
    './_base_/segmentation_runtime.py',
]

pretrained = 'checkpoints/kat_small_patch16_224.pth'
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
