"""What a study compares are models that differ in what it says, with data of one kind."""

from pathlib import Path

import pytest
from mmengine.registry import MODELS, DefaultScope

from kat_mm.benchmarking.studies.runs import as_text
from kat_mm.benchmarking.studies.study import read_study
from kat_mm.openmmlab.configs import read_config

STUDIES = sorted((Path(__file__).parents[2] / 'configs' / 'studies').glob('*.py'))
CASES = [
    (study, task, variant)
    for study in map(read_study, STUDIES)
    for task in study.tasks.values()
    for variant in study.variants.values()
]


def settings_of(task, options):
    return read_config(str(task.config), [f'{k}={as_text(v)}' for k, v in options.items()])


@pytest.mark.parametrize(
    ('study', 'task', 'variant'), CASES, ids=[f'{s.name}-{t.name}-{v.name}' for s, t, v in CASES]
)
def test_each_variant_builds_its_model(study, task, variant):
    config = settings_of(task, {**study.options, **variant.options})
    with DefaultScope.overwrite_default_scope(config.default_scope):
        backbone = MODELS.build(config.model.backbone)
    chosen = variant.options.get('model.backbone.attention.type', 'softmax')
    kinds = {type(block.attn).__name__ for block in backbone.blocks}
    assert kinds == {'KArAt' if chosen == 'KArAt' else 'SoftmaxAttention'}


@pytest.mark.parametrize('study', map(read_study, STUDIES), ids=lambda study: study.name)
def test_trainings_are_safe_and_as_long_as_they_say(study):
    for task in study.tasks.values():
        for variant in study.variants.values():
            config = settings_of(task, {**study.options, **variant.options})
            assert {'EpochSeedHook', 'FiniteLossHook'} <= {h.type for h in config.custom_hooks}
            assert config.default_hooks.checkpoint.type == 'SafeCheckpointHook'
            iters = config.train_cfg.max_iters
            assert config.train_cfg.val_interval == iters
            assert config.param_scheduler[-1].end == iters
            assert iters % config.default_hooks.checkpoint.interval == 0
            assert iters % config.default_hooks.logger.interval == 0
