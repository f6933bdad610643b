# Mask R-CNN with KAT-T on COCO.
_base_ = '../kat_maskrcnn_coco.py'

pretrained = 'checkpoints/kat_tiny_patch16_224.pth'
model = dict(
    backbone=dict(arch='tiny', init_cfg=dict(checkpoint=pretrained)),
    neck=[
        dict(
            type='mmseg.Feature2Pyramid',
            embed_dim=192,
            norm_cfg=dict(type='GN', num_groups=32),
        ),
        dict(type='FPN', in_channels=[192] * 4, out_channels=256, num_outs=5),
    ],
)
