# UPerNet with KAT-B on ADE20K.
_base_ = '../kat_upernet_ade20k.py'

pretrained = 'checkpoints/kat_base_patch16_224.pth'
model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[768] * 4, out_channels=768),
    decode_head=dict(in_channels=[768] * 4),
    auxiliary_head=dict(in_channels=768),
)
