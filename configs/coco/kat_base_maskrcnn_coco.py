# Mask R-CNN with KAT-B on COCO.
_base_ = '../kat_maskrcnn_coco.py'

pretrained = 'checkpoints/kat_base_patch16_224.pth'
model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint=pretrained)),
    neck=[
        dict(
            type='mmseg.Feature2Pyramid',
            embed_dim=768,
            norm_cfg=dict(type='GN', num_groups=32),
        ),
        dict(type='FPN', in_channels=[768] * 4, out_channels=256, num_outs=5),
    ],
)
