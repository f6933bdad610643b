"""FusedEncoderDecoder predicts and learns what mmseg's EncoderDecoder does."""

import copy

import mmseg.models  # noqa: F401, which the fused heads follow
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from kat_mm.graphs import graph_parts
from kat_mm.openmmlab.hooks.cuda_graph import default_parts
from kat_mm.openmmlab.tta import augment_tests

HEAD = dict(
    in_channels=8, channels=8, num_convs=1, norm_cfg=dict(type='BN'), num_classes=5, in_index=0
)


def build(kind, fused=True, **kwargs):
    head = dict(type='FusedFCNHead' if fused else 'FCNHead', **HEAD, dropout_ratio=0.0)
    config = dict(
        type=kind,
        data_preprocessor=dict(type='SegDataPreProcessor', size=(32, 48)),
        backbone=dict(
            type='KAT', arch=dict(embed_dims=8, num_layers=2, num_heads=2), img_size=32, patch=8
        ),
        decode_head={**head, **kwargs.pop('head', {})},
        auxiliary_head=head,
        test_cfg=dict(mode='whole'),
    )
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(Config({**config, **kwargs})._cfg_dict)


def pair(**kwargs):
    stock, fused = build('EncoderDecoder', **kwargs), build('FusedEncoderDecoder', **kwargs)
    for model in (stock, fused):
        for head in (model.decode_head, model.auxiliary_head):
            torch.nn.init.normal_(head.conv_seg.weight)  # or nearly all pixels are of one class
    fused.load_state_dict(stock.state_dict())
    return stock, fused


def samples(count, **meta):
    meta = {'img_shape': (32, 48), 'pad_shape': (32, 48), 'ori_shape': (32, 48), **meta}
    return [SegDataSample(metainfo=meta) for _ in range(count)]


METAS = {
    'as they are': {},
    'scaled back': {'ori_shape': (50, 70)},
    'smaller': {'ori_shape': (20, 31)},
    'padded': {
        'img_shape': (25, 40),
        'ori_shape': (50, 80),
        'img_padding_size': (3, 5, 4, 3),
    },
    'padded by the pipeline': {'ori_shape': (50, 80), 'padding_size': [0, 8, 0, 7]},
    'flipped': {'flip': True, 'flip_direction': 'horizontal'},
}


@pytest.mark.parametrize('name', METAS)
@pytest.mark.parametrize('head', [{}, {'align_corners': True}, {'type': 'FCNHead'}])
def test_labels_are_those_of_the_stock_segmentor(name, head):
    stock, fused = (model.eval() for model in pair(head=head))
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        expected = stock.predict(images, samples(2, **METAS[name]))
        found = fused.predict(images, samples(2, **METAS[name]))
    for one, other in zip(found, expected, strict=True):
        assert len(other.pred_sem_seg.data.unique()) > 1
        assert torch.equal(one.pred_sem_seg.data, other.pred_sem_seg.data)
        assert ('seg_logits' in one) == (name == 'flipped')


def test_without_samples():
    stock, fused = (model.eval() for model in pair())
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        for one, other in zip(fused.predict(images), stock.predict(images), strict=True):
            assert torch.equal(one.pred_sem_seg.data[0], other.pred_sem_seg.data[0])


@pytest.mark.parametrize(
    'kwargs',
    [
        {'test_cfg': dict(mode='whole', keep_logits=True)},
        {'test_cfg': dict(mode='slide', crop_size=(32, 32), stride=(16, 16))},
        {'head': {'num_classes': 2, 'out_channels': 1, 'threshold': 0.5, 'type': 'FCNHead'}},
    ],
)
def test_logits_come_where_they_are_asked_for_or_needed(kwargs):
    stock, fused = (model.eval() for model in pair(**copy.deepcopy(kwargs)))
    images = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        (expected,), (found,) = (m.predict(images, samples(1)) for m in (stock, fused))
    for name in ('seg_logits', 'pred_sem_seg'):
        assert torch.equal(getattr(found, name).data, getattr(expected, name).data)


@pytest.mark.parametrize('fused_heads', [False, True])
def test_losses_are_those_of_the_stock_segmentor(fused_heads):
    stock, fused = pair(fused=fused_heads)
    batch = samples(2)
    for sample in batch:
        sample.gt_sem_seg = PixelData(data=torch.randint(5, (1, 32, 48)))
    images = torch.randn(2, 3, 32, 48)
    expected, found = (model.loss(images, batch) for model in (stock, fused))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert bool(fused.graph_parts) == fused_heads


def test_parts_for_graphs():
    plain = ['extract_feat', 'decode_head', 'auxiliary_head']
    assert default_parts(build('EncoderDecoder')) == plain
    assert default_parts(build('FusedEncoderDecoder', fused=False)) == plain
    fused = build('FusedEncoderDecoder')
    assert default_parts(fused) == ['compute_losses', '_forward']
    keys = list(fused.state_dict())
    parts = graph_parts(fused, default_parts(fused))
    assert list(fused.state_dict()) == keys
    parts.release()
    assert 'compute_losses' not in vars(fused)


def test_test_time_augmentation_asks_for_logits():
    dataset = dict(type='BaseSegDataset', pipeline=[dict(type='LoadImageFromFile')])
    config = Config(
        dict(
            default_scope='mmseg',
            model=dict(type='FusedEncoderDecoder'),
            test_dataloader=dict(dataset=dataset),
            tta_model=dict(type='SegTTAModel'),
            tta_pipeline=[dict(type='LoadImageFromFile')],
        )
    )
    augment_tests(config)
    assert config.model.module.test_cfg.keep_logits


def test_class_weights_are_no_part_of_the_state():
    loss = dict(type='CrossEntropyLoss', class_weight=[1.0, 2.0, 1.0, 0.5, 1.0])
    model = build('FusedEncoderDecoder', head={'loss_decode': loss})
    assert torch.equal(model.decode_head.class_weight_0, torch.tensor(loss['class_weight']))
    assert not [key for key in model.state_dict() if 'class_weight' in key]
