# KAT-T with plain Kolmogorov-Arnold attention in windows of 16 x 16, of which crops hold four.
_base_ = './kat_upernet_digits_gpu.py'

model = dict(
    backbone=dict(attention=dict(type='KArAt', window_size=16, global_attention='softmax'))
)
custom_hooks = [*_base_.custom_hooks, dict(type='ScoreRangeHook')]
