"""Models of configs run on the meta device, and count what they do with real tensors."""

from copy import deepcopy
from pathlib import Path

import pytest
from mmcv_ops import COMPILED
from mmengine.config import Config
from mmengine.hub import get_config

from kat_mm.benchmarking.operations import count_parts
from kat_mm.openmmlab.dry_run import prepare

CONFIGS = Path(__file__).parents[2] / 'configs'


def total(parts, key):
    return sum(getattr(part, key) for part in parts.values())


@pytest.fixture(scope='module')
def detector():
    """The Mask R-CNN of the demo, with blocks that take no time to initialise."""
    config = Config.fromfile(CONFIGS / 'kat_maskrcnn_digits.py')
    config.model.backbone.attention.mimetic = False
    return config


@pytest.fixture(scope='module')
def parts(detector):
    model, call = prepare(deepcopy(detector), (100, 120))
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert call['inputs'].shape == (1, 3, 128, 128)  # pad_size_divisor=32
    return count_parts(model, **call)


def test_the_meta_device_counts_what_the_cpu_does(detector, parts):
    model, call = prepare(deepcopy(detector), (100, 120), 'cpu')
    assert count_parts(model, **call) == parts


def test_the_heads_of_a_two_stage_detector(parts):
    """The RPN sees maps at strides 4, 8 and 16; boxes are of 200 proposals, masks of 100."""
    cells = 32**2 + 16**2 + 8**2
    assert parts['rpn_head', ''].operations == cells * 64 * (9 * 64 + 3 + 12)
    boxes = 64 * 49 * 256 + 256 * 256 + 256 * (11 + 40)
    assert parts['roi_head.bbox_head', ''].operations == 200 * boxes
    masks = 14**2 * (2 * 64 * 9 * 64 + 64 * 64 * 4) + 28**2 * 64 * 10
    assert parts['roi_head.mask_head', ''].operations == 100 * masks


def test_the_published_figures_of_swin():
    """UPerNet with Swin-T at 512 x 2048: 60 M parameters and 945 G FLOPs (arXiv 2103.14030)."""
    name = 'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'
    model, call = prepare(get_config(f'mmseg::{name}'), (512, 2048))
    parts = count_parts(model, **call)
    assert total(parts, 'parameters') / 1e6 == pytest.approx(60, abs=0.5)
    assert total(parts, 'operations') / 1e9 == pytest.approx(945, abs=0.5)


@pytest.mark.skipif(COMPILED, reason='kernels of a compiled mmcv do not run on the meta device')
def test_deformable_convolutions():
    """In mmdet's ResNet-50 they add convolutions that compute 18 offsets."""
    counts = []
    for name in ('dcn/faster-rcnn_r50-dconv-c3-c5', 'faster_rcnn/faster-rcnn_r50'):
        model, call = prepare(get_config(f'mmdet::{name}_fpn_1x_coco.py'), (64, 64))
        counts.append(count_parts(model, **call)['backbone', ''].operations)
    stages = ((128, 4, 8), (256, 6, 4), (512, 3, 2))  # channels, blocks, side of the map
    assert counts[0] - counts[1] == sum(9 * c * 18 * n * side**2 for c, n, side in stages)
