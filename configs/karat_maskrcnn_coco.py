# Mask R-CNN with KAT-S on COCO, whose windows add Kolmogorov-Arnold attention to softmax. The
# weights that it starts from were trained with softmax: base='softmax' keeps what they compute, and
# a gate of each head, which starts at zero, lets the learnable functions in. Global blocks keep
# softmax, as their maps have the size of the image; a whole window has 14 x 14 tokens in any.
_base_ = './kat_maskrcnn_coco.py'

model = dict(
    backbone=dict(attention=dict(type='KArAt', base='softmax', global_attention='softmax'))
)
custom_hooks = [*_base_.custom_hooks, dict(type='ScoreRangeHook')]
