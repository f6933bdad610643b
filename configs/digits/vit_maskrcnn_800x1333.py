# The twin with plain MLPs of kat_maskrcnn_800x1333.py.
_base_ = './kat_maskrcnn_800x1333.py'

model = dict(backbone=dict(ffn='mlp'))
