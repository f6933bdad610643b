"""Which of mmcv's ops swap_backbone finds in a model, and what it says of them."""

import pytest
from mmcv.ops import DeformConv2d, RoIPool, nms_rotated, soft_nms
from mmcv_ops import COMPILED
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from kat_mm.openmmlab.swap import CannotSwap, swap_backbone
from kat_mm.openmmlab.swap.ops import called_ops

pytestmark = pytest.mark.skipif(COMPILED, reason='a compiled mmcv has all ops')


class Assigner:
    """Not a module, as those of mmdet; calls an op by a function of a function."""

    def assign(self, boxes):
        return keep(boxes)

    @property
    def name(self):
        return type(self).__name__


class Rotated(Assigner):
    pass


def keep(boxes):
    return [nms_rotated(box, box, 0.5) for box in boxes]


class Head(nn.Module):
    def __init__(self, *parts):
        super().__init__()
        self.settings = {'parts': list(parts)}

    def forward(self, x):
        if isinstance(x, RoIPool):  # no call of it
            return x
        return soft_nms(x, x)


class Detector(nn.Module):
    """A model with a backbone, to be swapped, and a neck."""

    def __init__(self, backbone, neck, **_):
        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.neck = nn.Sequential(RoIPool(2) if neck == 'pool' else DeformConv2d(1, 1, 1))


@pytest.fixture
def swap():
    MODELS.register_module(module=Detector)
    yield lambda neck: swap_backbone(
        Config(
            {
                'model': {
                    'type': 'Detector',
                    'backbone': {'type': 'mmdet.ResNet', 'depth': 18},
                    'neck': neck,
                    'data_preprocessor': {},
                },
                'optim_wrapper': {'optimizer': {'type': 'SGD', 'lr': 0.01}},
            }
        ),
        {'embed_dims': 48, 'num_layers': 4, 'num_heads': 2},
    )
    MODELS.module_dict.pop('Detector')


def test_ops_of_layers():
    assert called_ops(nn.Sequential(nn.Conv2d(1, 1, 1))) == ({}, {})
    supplied, missing = called_ops(nn.Sequential(DeformConv2d(1, 1, 1), RoIPool(2)))
    assert {'deform_conv_forward', 'deform_conv_backward_input'} < set(supplied)
    assert set(supplied.values()) == {'DeformConv2d'}
    assert missing == dict.fromkeys(['roi_pool_forward', 'roi_pool_backward'], 'RoIPool')


def test_ops_of_functions_and_of_what_modules_hold():
    assert called_ops(Head()) == ({'softnms': 'Head'}, {})
    assert called_ops(Head(Rotated())) == ({'softnms': 'Head'}, {'nms_rotated': 'Rotated'})


def test_a_model_that_calls_a_missing_op_is_refused(swap):
    message = r'Detector calls mmcv ops that are missing here: .*roi_pool_forward \(by RoIPool\)'
    with pytest.raises(CannotSwap, match=message + '; install an mmcv that is compiled'):
        swap('pool')


def test_ops_that_kat_mm_runs_are_named(swap, capsys):
    swap('deform')
    assert 'kat_mm runs deform_conv_backward_input, deform_conv_' in capsys.readouterr().out
