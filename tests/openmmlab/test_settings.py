"""Settings from the command line: how they are read, and what is refused before it counts."""

import pytest
from mmengine.config import Config

import kat_mm.openmmlab  # noqa: F401
from kat_mm.errors import ConfigError
from kat_mm.openmmlab.settings import apply_settings, parse_settings


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('12', 12),
        ('1e-4', 1e-4),
        ('True', True),
        ('false', False),
        ('None', None),
        ('', ''),
        ('1,2', [1, 2]),
        ('[a, b c]', ['a', 'b c']),
        ('(64, 64)', (64, 64)),
        ('(64,)', (64,)),
        ('[(1, 2), [a, b], c]', [(1, 2), ['a', 'b'], 'c']),
        ('[]', []),
        ('"[1, 2]"', [1, 2]),
        ('/my data (1)/x', '/my data (1)/x'),
        ('(old) data', '(old) data'),
        ('(a) b (c)', '(a) b (c)'),
        ('a=b', 'a=b'),
        (' a ', ' a '),
        (' 3', 3),
        ('none', 'none'),
        ("it's", "it's"),
        ('"/my, data [1"', '/my, data [1'),
        ("['a, b', c]", ['a, b', 'c']),
    ],
)
def test_values(text, value):
    parsed = parse_settings([f'some.key={text}'])['some.key']
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('key', '--cfg-options key: must be KEY=VALUE, such as'),
        ('=3', "'' is no key"),
        ('a..b=3', "'a..b' is no key"),
        ('a =3', "'a ' is no key"),
        ('a=[1,2', r"'\[1,2' lacks '\]' at its end; a text with brackets stands in quotes: a='"),
        ('a=[1,(2]', "']' after '.1,.2' closes nothing"),
        ('a=1]', "']' after '1' closes nothing"),
        ('a="b', "lacks '\"' at its end"),
    ],
)
def test_what_is_no_setting(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_settings([text])


def config():
    return Config(
        dict(
            default_scope='mmdet',
            data_root='data/',
            model=dict(
                backbone=dict(type='KAT', arch='small', init_cfg=None),
                bbox_head=dict(type='RetinaHead', num_classes=80, in_channels=256),
                test_cfg=dict(score_thr=0.05, nms=dict(type='soft_nms')),
            ),
            train_dataloader=dict(
                batch_size=2, dataset=dict(type='CocoDataset', data_root='data/', pipeline=[{}])
            ),
            optim_wrapper=dict(type='AmpOptimWrapper', optimizer=dict(type='AdamW', lr=1)),
            train_cfg=dict(by_epoch=True, max_epochs=12),
            param_scheduler=[dict(type='LinearLR', start_factor=0.1)],
            default_hooks=dict(checkpoint=dict(type='SafeCheckpointHook', interval=1)),
            visualizer=dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')]),
        )
    )


@pytest.mark.parametrize(
    'text',
    [
        'train_cfg.max_epochs=3',
        'train_cfg.val_begin=2',
        'optim_wrapper.optimizer.lr=0.5',
        'optim_wrapper.optimizer.weight_decay=0.5',
        'optim_wrapper.loss_scale=dynamic',
        'optim_wrapper.loss_scale=512',
        'optim_wrapper.paramwise_cfg.layer_decay_rate=0.5',
        'optim_wrapper.clip_grad.max_norm=1',
        'model.backbone.arch=tiny',
        'model.backbone.ffn.type=mlp',
        'model.backbone.init_cfg.type=Pretrained',
        'model.bbox_head.loss_cls.gamma=1.5',
        'model.test_cfg.nms=None',
        'train_dataloader.num_workers=3',
        'train_dataloader.dataset.ann_file=my annotations.json',
        'param_scheduler.0.begin=5',
        'param_scheduler.0.convert_to_iter_based=True',
        'param_scheduler=None',
        'default_hooks.checkpoint.max_keep_ckpts=3',
        'default_hooks.mine.type=IterTimerHook',
        'model.test_cfg.nms.type=nms',  # no registry has it
        'compile.backend=eager',
        'auto_scale_lr.base_batch_size=16',
        'load_from=a.pth',
    ],
)
def test_settings_that_something_takes(text):
    settings = parse_settings([text])
    changed = config()
    apply_settings(changed, settings)
    [(key, value)] = settings.items()
    node = changed
    for part in key.split('.'):
        node = node[int(part) if part.isdecimal() else part]
    assert node == value


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            'train_cfg.max_epoch=1',
            'EpochBasedTrainLoop takes no max_epoch; did you mean max_epochs',
        ),
        ('lod_from=a.pth', 'there is no lod_from in a config; did you mean load_from'),
        ('optim_wrapper.optimizer.type=AdamWW', 'there is no AdamWW; did you mean AdamW'),
        ('optim_wrapper.optimizer.momentum=0.9', 'AdamW takes no momentum; known: amsgrad, betas'),
        ('optim_wrapper.acumulative_counts=2', 'did you mean accumulative_counts'),
        ('model.backbone.type=KATT', 'there is no KATT; did you mean KAT'),
        (
            'model.bbox_head.num_clases=3',
            'RetinaHead takes no num_clases; did you mean num_classes',
        ),
        ('model.test_cfg.score_th=1', 'there is no score_th in model.test_cfg; did you mean'),
        ('model.backbone.arch.num_heads=3', "model.backbone.arch is 'small', in which there is no"),
        ('param_scheduler.1.end=3', "param_scheduler is a list of 1, so that '1' must be one of 0"),
        ('param_scheduler.end=3', "param_scheduler is a list of 1, so that 'end' must be one of 0"),
        ('default_hooks.checkpont.interval=3', 'did you mean checkpoint'),
        ('train_dataloader.batchsize=3', 'DataLoader takes no batchsize; did you mean batch_size'),
        ('train_cfg.max_epochs=many', 'max_epochs=many: must be a whole number'),
        ('train_cfg.max_epochs=1.5', 'must be a whole number'),
        ('train_dataloader.batch_size=2.5', 'must be a whole number'),
        ('optim_wrapper.optimizer.lr=fast', 'must be a number'),
        ('model.backbone.with_cp=yes', 'must be true or false'),
        ('param_scheduler=x', 'must be a list, set by its indices'),
        ('optim_wrapper=AdamW', 'must be a dict, set by its keys'),
    ],
)
def test_settings_that_nothing_takes(text, message):
    with pytest.raises(ConfigError, match=message):
        apply_settings(config(), parse_settings([text]))


def test_arguments_are_those_of_the_new_type():
    changed = config()
    texts = ['optim_wrapper.optimizer.momentum=0.9', 'optim_wrapper.optimizer.type=SGD']
    apply_settings(changed, parse_settings(texts))
    assert changed.optim_wrapper.optimizer == dict(type='SGD', lr=1, momentum=0.9)


def test_a_variable_of_the_file_has_no_effect(capfd):
    apply_settings(config(), parse_settings(['data_root=my data/']))
    assert (
        'only the config file reads data_root, and has done so; for an effect set '
        'train_dataloader.dataset.data_root=my data/'
    ) in ' '.join(capfd.readouterr())
