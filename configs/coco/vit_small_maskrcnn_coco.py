# The twin of KAT-S with plain MLPs, which is ViT-S.
_base_ = '../kat_maskrcnn_coco.py'

pretrained = 'checkpoints/vit_small_patch16_224.pth'
model = dict(backbone=dict(ffn='mlp', init_cfg=dict(checkpoint=pretrained)))
