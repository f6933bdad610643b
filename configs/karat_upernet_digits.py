# UPerNet with a small KAT of plain Kolmogorov-Arnold attention in windows, trained from scratch.
# Four windows of 5 x 5 tokens fill a crop of 80 x 80; global blocks keep softmax, as whole scenes
# are larger than the crops.
_base_ = './kat_upernet_digits.py'

model = dict(
    backbone=dict(
        attention=dict(
            type='KArAt', window_size=5, global_blocks=(1, 3), global_attention='softmax'
        )
    )
)
custom_hooks = [*_base_.custom_hooks, dict(type='ScoreRangeHook')]
