# UPerNet with KAT-T on ADE20K.
_base_ = '../kat_upernet_ade20k.py'

pretrained = 'checkpoints/kat_tiny_patch16_224.pth'
model = dict(
    backbone=dict(arch='tiny', init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[192] * 4, out_channels=192),
    decode_head=dict(in_channels=[192] * 4),
    auxiliary_head=dict(in_channels=192),
)
