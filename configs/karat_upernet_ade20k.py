# UPerNet with KAT-S whose windows add Kolmogorov-Arnold attention to softmax, on ADE20K. As the
# weights were trained with softmax, it is gated: base='softmax' computes that at the start. Windows
# of 16 x 16 tokens fill crops of 512 x 512, and whole test images of 512 x 2048, so the functions
# are trained for the N that they are tested with, at a cost that is linear in the number of tokens.
_base_ = './kat_upernet_ade20k.py'

model = dict(
    backbone=dict(
        attention=dict(type='KArAt', base='softmax', window_size=16, global_attention='softmax')
    )
)
custom_hooks = [*_base_.custom_hooks, dict(type='ScoreRangeHook')]
