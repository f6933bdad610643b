# The twin of KAT-B with plain MLPs, which is UPerNet with ViT-B.
_base_ = './kat_base_upernet_ade20k.py'

pretrained = 'checkpoints/vit_base_patch16_224.pth'
model = dict(backbone=dict(ffn='mlp', init_cfg=dict(checkpoint=pretrained)))
