# Mask R-CNN with KAT-B on COCO.
_base_ = '../kat_maskrcnn_coco.py'

pretrained = 'checkpoints/kat_base_patch16_224.pth'
model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=768),
)
