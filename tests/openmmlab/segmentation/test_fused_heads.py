"""mmseg's heads with the fused loss, against the same heads with mmseg's."""

import mmseg.models  # noqa: F401, which the fused heads follow
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from kat_mm.errors import ConfigError
from kat_mm.openmmlab.segmentation.fused_heads import STOCK

PYRAMID = dict(in_channels=[8] * 4, in_index=[0, 1, 2, 3], channels=8, norm_cfg=dict(type='BN'))
ONE = dict(in_channels=8, in_index=0, channels=8, norm_cfg=dict(type='BN'))
HEADS = {
    'UPerHead': dict(**PYRAMID, pool_scales=(1, 2)),
    'SegformerHead': PYRAMID,
    'FCNHead': dict(**ONE, num_convs=1),
    'PSPHead': dict(**ONE, pool_scales=(1, 2)),
    'ASPPHead': dict(**ONE, dilations=(1, 2)),
}
CE = dict(type='CrossEntropyLoss')
LOSSES = {
    'plain': CE,
    'mean of what counts': dict(**CE, avg_non_ignore=True, loss_weight=0.4),
    'class weights': dict(**CE, class_weight=[0.2, 1.0, 2.0, 1.0, 0.5]),
    'two': [dict(**CE, loss_name='loss_a'), dict(**CE, loss_name='loss_b', loss_weight=2.0)],
}


def build(kind, loss, **kwargs):
    torch.manual_seed(0)
    config = dict(type=kind, num_classes=5, dropout_ratio=0.0, align_corners=False)
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(
            {**config, **HEADS[kind.removeprefix('Fused')], 'loss_decode': loss, **kwargs}
        )


def samples(ignored=True):
    labels = torch.randint(5, (2, 1, 36, 52))
    if ignored:
        labels[torch.rand(labels.shape) < 0.3] = 255
    return [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]


@pytest.mark.parametrize('kind', HEADS)
@pytest.mark.parametrize('loss', LOSSES)
def test_losses_and_gradients_are_those_of_the_stock_head(kind, loss):
    stock, fused = (build(name, LOSSES[loss]) for name in (kind, f'Fused{kind}'))
    assert isinstance(fused, type(stock))
    fused.load_state_dict(stock.state_dict())
    maps = [torch.randn(2, 8, 16 // 2**i, 16 // 2**i) for i in range(4)]
    batch = samples(ignored=loss != 'class weights')  # of which mmseg looks up the class 255
    results = []
    for head in (stock, fused):
        inputs = [y.clone().requires_grad_() for y in maps]
        losses = head.loss(inputs, batch, None)
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        grads = [y.grad for y in inputs if y.grad is not None]
        results.append((losses, grads + [p.grad for p in head.parameters()]))
    (expected, expected_grads), (losses, grads) = results
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    for found, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)


def test_ignored_pixels_weigh_nothing_where_classes_have_weights():
    head = build('FusedFCNHead', LOSSES['class weights'])
    maps, batch = [torch.randn(2, 8, 16, 16)], samples()
    loss = head.loss(maps, batch, None)['loss_ce']
    logits = torch.nn.functional.interpolate(head(maps), (36, 52), mode='bilinear')
    labels = torch.stack([sample.gt_sem_seg.data[0] for sample in batch])
    weight = torch.tensor(LOSSES['class weights']['class_weight'])
    expected = torch.nn.functional.cross_entropy(logits, labels, weight, ignore_index=255)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (
            {'loss_decode': dict(type='DiceLoss')},
            'FusedFCNHead: loss_decode must be CrossEntropyLo',
        ),
        ({'loss_decode': dict(**CE, use_sigmoid=True)}, 'use FCNHead'),
        ({'sampler': dict(type='OHEMPixelSampler')}, 'its loss takes no sampler; use FCNHead'),
    ],
)
def test_other_losses_are_refused(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        build('FusedFCNHead', CE, **kwargs)


def test_heads_with_losses_of_their_own_are_listed():
    assert {'PointHead', 'EncHead', 'DAHead'} <= set(STOCK)
    assert all(f'Fused{name}' not in MODELS.module_dict for name in STOCK)
