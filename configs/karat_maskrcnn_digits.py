# Mask R-CNN with a small KAT of plain Kolmogorov-Arnold attention, as it is trained from scratch.
# All scenes have 16 x 16 patches, so every block may attend globally by functions made for these.
_base_ = './kat_maskrcnn_digits.py'

model = dict(backbone=dict(attention=dict(type='KArAt')))
custom_hooks = [*_base_.custom_hooks, dict(type='ScoreRangeHook')]
