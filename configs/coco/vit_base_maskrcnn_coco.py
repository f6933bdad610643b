# The twin of KAT-B with plain MLPs, which is ViT-B.
_base_ = './kat_base_maskrcnn_coco.py'

pretrained = 'checkpoints/vit_base_patch16_224.pth'
model = dict(backbone=dict(ffn='mlp', init_cfg=dict(checkpoint=pretrained)))
