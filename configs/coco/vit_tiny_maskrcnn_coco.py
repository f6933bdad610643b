# The twin of KAT-T with plain MLPs, which is ViT-T.
_base_ = './kat_tiny_maskrcnn_coco.py'

pretrained = 'checkpoints/vit_tiny_patch16_224.pth'
model = dict(backbone=dict(ffn='mlp', init_cfg=dict(checkpoint=pretrained)))
