# Attention by softmax, by learnable functions of the scores (KArAt), and by both with a gate: from
# scratch with either feed-forward layer, and from weights that were trained with softmax.
tasks = dict(
    detection=dict(config='_base_/detection.py', scores=['box AP', 'mask AP']),
    segmentation=dict(config='_base_/segmentation.py', scores=['mIoU']),
)
seeds = (0, 1, 2)
prepare = [
    [
        *('make_digit_scenes.py', 'data/digit_scenes_study', '--size', 192, 192),
        *('--train', 3000, '--val', 300, '--min-digits', 4, '--max-digits', 9),
    ]
]

ITERS = 400


def budget(iters):
    """Returns the settings of so many iterations, with one validation at the end."""
    return {
        'train_cfg.max_iters': iters,
        'train_cfg.val_interval': iters,
        'param_scheduler.1.end': iters,
        'default_hooks.checkpoint.interval': iters // 2,
    }


options = budget(ITERS)
FFNS = {'mlp': 'MLP', 'gr_kan': 'GR-KAN'}
KARAT = {
    'model.backbone.attention.type': 'KArAt',
    'model.backbone.attention.basis': 'fourier',  # of grid size 3
    'model.backbone.attention.rank': 12,
}
ATTENTIONS = {
    'softmax': ('softmax', {}),
    'karat': ('KArAt', KARAT),
    'gated': ('softmax + gated KArAt', {**KARAT, 'model.backbone.attention.base': 'softmax'}),
}
variants = {
    f'{ffn}-{name}': dict(
        title=f'{FFNS[ffn]}, {title}', options={'model.backbone.ffn': ffn, **attention}
    )
    for ffn in FFNS
    for name, (title, attention) in ATTENTIONS.items()
}
variants |= {
    f'tuned-{name}': dict(
        title=f'MLP, fine-tuned as {title}',
        after='mlp-softmax',
        options={'model.backbone.ffn': 'mlp', **attention, **budget(ITERS // 2)},
    )
    for name, (title, attention) in ATTENTIONS.items()
}

# A few iterations of each, to see that they run.
quick = {
    'train_cfg.max_iters': 4,
    'train_cfg.val_interval': 4,
    'default_hooks.checkpoint.interval': 2,
    'default_hooks.logger.interval': 1,
}
