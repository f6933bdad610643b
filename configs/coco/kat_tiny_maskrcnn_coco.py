# Mask R-CNN with KAT-T on COCO.
_base_ = '../kat_maskrcnn_coco.py'

pretrained = 'checkpoints/kat_tiny_patch16_224.pth'
model = dict(
    backbone=dict(arch='tiny', init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=192),
)
