"""The configs of mmdet and mmsegmentation train and predict with KAT.

A few of them by default; all with ALL_CONFIGS=1 in the environment, in some minutes.
"""

import os
import re

import pytest
import steps
import torch
from mmengine.registry import DefaultScope
from shipped import MORE, REFUSED, REPRESENTATIVE, SHIPPED

from kat_mm.models import KAT
from kat_mm.openmmlab.model_checks import check_model
from kat_mm.openmmlab.swap import CannotSwap, read_config, swap_backbone, write_config

pytestmark = pytest.mark.slow
ALL = bool(os.environ.get('ALL_CONFIGS'))
WORKING = [*SHIPPED.values(), *MORE] if ALL else [SHIPPED[name] for name in REPRESENTATIVE]


@pytest.mark.parametrize('name', WORKING)
def test_trains_and_predicts(name, tmp_path):
    config, base = read_config(name)
    swap_backbone(config, steps.ARCH)
    write_config(config, base, tmp_path / 'config.py')
    assert f'\n_base_ = {base!r}\n' in '\n' + (tmp_path / 'config.py').read_text()

    steps.shrink(config)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = steps.build(config)
        check_model(model)
        backbone = model.backbone
        assert isinstance(backbone, KAT)
        before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
        loss = steps.train(model, config)
        assert loss.isfinite()
        moved = {
            name for name, p in backbone.named_parameters() if not torch.equal(p, before[name])
        }
        assert {f'blocks.{i}.mlp.fc1.weight' for i in range(4)} < moved
        samples = steps.predict(model, config)
    assert len(samples) == 2
    for sample in samples:
        if 'seg_logits' in sample:
            assert sample.pred_sem_seg.data.shape == (1, *steps.SIZE)
            assert sample.seg_logits.data.isfinite().all()
        elif 'pred_panoptic_seg' in sample:
            assert sample.pred_panoptic_seg.sem_seg.shape == (1, *steps.SIZE)
        else:
            # Some find nothing before they are trained.
            assert len(sample.pred_instances) or name in MORE
            assert sample.pred_instances.bboxes.isfinite().all()


@pytest.mark.parametrize('name', list(REFUSED) if ALL else list(REFUSED)[-1:])
def test_refused(name):
    with pytest.raises(CannotSwap, match=re.escape(REFUSED[name])):
        swap_backbone(read_config(name)[0], steps.ARCH)


def test_a_stock_config_needs_nothing_but_its_backbone():
    config, _ = read_config(SHIPPED['FCN'])  # whose model.pretrained names a ResNet's weights
    kat = {'type': 'KAT', 'arch': steps.ARCH, 'pyramid': (256, 512, 1024, 2048)}
    config.model.backbone = kat
    config.custom_imports = {'imports': ['kat_mm.openmmlab']}
    steps.shrink(config)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = steps.build(config)
        assert model.backbone.init_cfg is None
        assert steps.predict(model, config)[0].pred_sem_seg.data.shape == (1, *steps.SIZE)
