# The COCO config with Kolmogorov-Arnold attention in windows, on generated scenes of COCO's size.
_base_ = './kat_maskrcnn_800x1333.py'

model = dict(
    backbone=dict(attention=dict(type='KArAt', base='softmax', global_attention='softmax'))
)
custom_hooks = [*_base_.custom_hooks, dict(type='ScoreRangeHook')]
