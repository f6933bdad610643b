"""Test time augmentation reaches the data sets inside of any wrapper."""

import pytest
from mmengine.config import Config

from kat_mm.errors import ConfigError
from kat_mm.openmmlab.tta import augment_tests

LEAF = dict(
    type='CocoDataset', pipeline=[dict(type='LoadImageFromFile'), dict(type='PackDetInputs')]
)


def config(dataset, **settings):
    dataloader = dict(dataset=dataset)
    scope = dict(default_scope='mmdet', model=dict(type='RetinaNet'))
    return Config({**scope, 'test_dataloader': dataloader, **settings})


def pipelines(node):
    """All pipelines in a data set's config, outermost first."""
    if isinstance(node, list):
        return [pipeline for part in node for pipeline in pipelines(part)]
    own = [node['pipeline']] if node.get('pipeline') else []
    return own + [p for key in ('dataset', 'datasets') if key in node for p in pipelines(node[key])]


WRAPPED = {
    'plain': (LEAF, 1),
    'concatenated': (dict(type='ConcatDataset', datasets=[LEAF, LEAF]), 2),
    'repeated': (dict(type='RepeatDataset', times=2, dataset=LEAF), 1),
    'balanced': (dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=LEAF), 1),
    'nested': (
        dict(
            type='RepeatDataset',
            times=2,
            dataset=dict(type='ConcatDataset', datasets=[LEAF, dict(type='x', dataset=LEAF)]),
        ),
        2,
    ),
}


@pytest.mark.parametrize('name', WRAPPED)
def test_detection_gets_flips(name):
    dataset, count = WRAPPED[name]
    changed = config(dataset)
    augment_tests(changed)
    found = pipelines(changed.test_dataloader.dataset)
    assert [pipeline[-1].type for pipeline in found] == ['TestTimeAug'] * count
    assert all(pipeline[0].type == 'LoadImageFromFile' for pipeline in found)
    assert changed.model.type == 'InstanceTTAModel'
    assert changed.model.module.type == 'RetinaNet'


def test_what_mixes_images_has_the_last_word():
    mixed = dict(type='MultiImageMixDataset', pipeline=LEAF['pipeline'][-1:], dataset=LEAF)
    changed = config(mixed)
    augment_tests(changed)
    outer, inner = pipelines(changed.test_dataloader.dataset)
    assert [step.type for step in outer] == ['TestTimeAug']
    assert [step.type for step in inner] == ['LoadImageFromFile', 'PackDetInputs']


def test_the_own_augmentation_of_a_config():
    own = dict(tta_model=dict(type='SegTTAModel'), tta_pipeline=[dict(type='TestTimeAug')])
    changed = config(WRAPPED['nested'][0], **own)
    augment_tests(changed)
    found = pipelines(changed.test_dataloader.dataset)
    assert found == [own['tta_pipeline']] * 2
    assert found[0] is not found[1]
    assert changed.model.type == 'SegTTAModel'


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(default_scope='mmseg'), 'the config has no tta_model and tta_pipeline'),
        (dict(test_dataloader=None), 'the config has no test_dataloader'),
        (dict(test_dataloader=dict(dataset=dict(type='My'))), 'the data set My has no pipeline'),
    ],
)
def test_what_cannot_be_augmented(settings, message):
    with pytest.raises(ConfigError, match=message):
        augment_tests(config(LEAF, **settings))
