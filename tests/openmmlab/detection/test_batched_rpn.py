"""The losses of BatchedRPNHead, against those of mmdet's RPNHead with the same random choices."""

import mmdet.models  # noqa: F401, which the heads follow
import pytest
import torch
from rpn_heads import batch, build, config, heads, share_choices
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from kat_mm.errors import ConfigError
from kat_mm.openmmlab.detection.anchor_grid import AnchorGrid

SETTINGS = {
    'plain': {},
    'smooth': dict(loss_bbox=dict(type='SmoothL1Loss', beta=0.1, loss_weight=2.0)),
    'weight of the class': dict(
        loss_cls=dict(
            type='CrossEntropyLoss', use_sigmoid=True, class_weight=[3.0], loss_weight=0.5
        )
    ),
    'ignored label': dict(loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True, ignore_index=7)),
    'softmax': dict(loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False)),
    'softmax, weights': dict(
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, class_weight=[3.0, 0.5])
    ),
    'focal': dict(loss_cls=dict(type='FocalLoss', use_sigmoid=True)),
    'boxes': dict(reg_decoded_bbox=True, loss_bbox=dict(type='GIoULoss')),
    'means and deviations': dict(
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder',
            target_means=(0.1, 0.0, -0.1, 0.2),
            target_stds=(0.1, 0.1, 0.2, 0.2),
        )
    ),
    'another coder': dict(bbox_coder=dict(type='TBLRBBoxCoder', normalizer=4.0)),
    'border': dict(allowed_border=0),
    'weight of positive ones': dict(pos_weight=2.5),
    'fewer candidates than asked': dict(
        sampler=dict(num=100000, pos_fraction=0.9, neg_pos_ub=3), assigner=dict(neg_iou_thr=0.1)
    ),
    'first of the best': dict(assigner=dict(gt_max_assign_all=False, min_pos_iou=0.0)),
    'range of negative ones': dict(assigner=dict(neg_iou_thr=(0.05, 0.3))),
    'several convolutions': dict(num_convs=2),
}


def losses_and_grads(head, maps, samples):
    maps = [x.clone().requires_grad_() for x in maps]
    losses = {
        name: sum(value) if isinstance(value, list) else value
        for name, value in head.loss(maps, samples).items()
    }
    sum(losses.values()).backward()
    grads = [x.grad for x in (*maps, *head.parameters())]
    head.zero_grad()
    return losses, grads


def assert_close(found, wanted, tolerance=1e-5):
    """Compares to a tolerance relative to the largest element: sums differ by their order."""
    torch.testing.assert_close(
        found, wanted, rtol=tolerance, atol=tolerance * wanted.abs().max().item()
    )


@pytest.mark.parametrize('name', SETTINGS)
@pytest.mark.parametrize('counts', [(5, 0, 3), (0, 0), (40,)])
def test_losses_and_gradients_are_those_of_the_stock_head(device, name, counts):
    stock, batched = heads(device, **SETTINGS[name])
    assert isinstance(batched, type(stock))
    maps, samples = batch(device, counts)
    share_choices(stock, batched, maps, samples)
    expected, expected_grads = losses_and_grads(stock, maps, samples)
    losses, grads = losses_and_grads(batched, maps, samples)
    assert losses.keys() == expected.keys()
    assert expected['loss_rpn_cls'] > 0
    assert (expected['loss_rpn_bbox'] > 0) == (sum(counts) > 0)
    for loss in losses:
        assert_close(losses[loss], expected[loss])
    for found, wanted in zip(grads, expected_grads, strict=True):
        assert_close(found, wanted, 1e-4)


def test_losses_of_maps_that_are_already_there(device):
    _, batched = heads(device)
    maps, samples = batch(device)
    keys = torch.rand(3, 3 * (24 * 32 + 12 * 16 + 6 * 8), device=device)
    batched.draw_keys = lambda *_: keys
    expected = batched.loss(maps, samples)
    gt, metas = zip(*((sample.gt_instances, sample.metainfo) for sample in samples), strict=True)
    losses = batched.loss_by_feat(*batched(maps), gt, metas)
    for name in losses:
        assert_close(losses[name], expected[name])


@pytest.mark.parametrize('threshold', [-1, 0.3])
def test_ignored_boxes(threshold):
    stock, batched = heads(assigner=dict(ignore_iof_thr=threshold))
    maps, samples = batch()
    samples[0].ignored_instances = samples[2].gt_instances.clone()
    share_choices(stock, batched, maps, samples)
    share_choices(batched, stock, maps, samples)
    expected, _ = losses_and_grads(stock, maps, samples)
    losses, _ = losses_and_grads(batched, maps, samples)
    for name in losses:
        assert_close(losses[name], expected[name])


def test_no_anchor_inside():
    head = build(config('BatchedRPNHead', allowed_border=0))
    maps, samples = batch()
    samples[1].set_metainfo(dict(img_shape=(2, 3)))
    with pytest.raises(ValueError, match='allowed_border=-1'):
        head.loss(maps, samples)


def test_anchors_are_those_of_the_generator(device):
    stock, _ = heads()
    grid = AnchorGrid(stock.prior_generator)
    for sizes in (
        [(6, 9), (3, 5), (2, 3)],
        [(5, 9), (3, 2), (1, 1)],
        [(5, 11), (8, 2), (1, 4)],
        [(6, 9), (3, 5), (2, 3)],
    ):
        found = grid(sizes, torch.device(device))
        expected = stock.prior_generator.grid_priors(sizes, device=device)
        assert torch.equal(found.anchors, torch.cat(expected))
        assert found.counts == tuple(map(len, expected))
        assert grid(sizes, torch.device(device)) is found


def test_anchors_of_fake_tensors_are_not_kept():
    stock, _ = heads()
    grid, sizes = AnchorGrid(stock.prior_generator), [(6, 9), (3, 5), (2, 3)]
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = grid(sizes, torch.device('cpu'))
    assert isinstance(fake.anchors, FakeTensor)
    found = grid(sizes, torch.device('cpu'))
    assert torch.equal(
        found.anchors, torch.cat(stock.prior_generator.grid_priors(sizes, device='cpu'))
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert isinstance(grid(sizes, torch.device('cpu')).anchors, FakeTensor)
    assert grid(sizes, torch.device('cpu')) is found


def test_losses_under_autocast_are_computed_in_full_precision(device):
    _, batched = heads(device)
    maps, samples = batch(device)
    keys = torch.rand(3, 3 * (24 * 32 + 12 * 16 + 6 * 8), device=device)
    batched.draw_keys = lambda *_: keys
    expected, _ = losses_and_grads(batched, maps, samples)
    with torch.autocast(device, torch.bfloat16):
        losses, _ = losses_and_grads(batched, maps, samples)
    for name in losses:
        assert losses[name].dtype == torch.float32
        assert_close(losses[name], expected[name], 3e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_training_does_not_wait_for_the_gpu():
    _, batched = heads('cuda')
    maps, samples = batch('cuda')

    def step():
        losses, _ = batched.loss_and_predict(maps, samples)
        sum(losses.values()).backward()

    step()  # which copies the anchors of a cell
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(assigner=dict(type='ATSSAssigner', topk=9)), 'train_cfg.assigner must be a MaxIoU'),
        (dict(sampler=dict(type='PseudoSampler')), 'train_cfg.sampler must be a RandomSampler'),
        (dict(sampler=dict(add_gt_as_proposals=True)), 'add_gt_as_proposals must be False'),
        (dict(assigner=dict(neg_iou_thr=0)), 'neg_iou_thr must be a float or a tuple, got 0'),
        (
            dict(loss_bbox=dict(type='L1Loss', reduction='sum')),
            "reduction must be 'mean', got 'sum'",
        ),
        (dict(loss_cls=dict(type='GHMC')), 'loss_cls must be CrossEntropyLoss'),
        (dict(bbox_coder=dict(type='DeltaXYWHBBoxCoder', use_box_type=True)), 'use_box_type'),
    ],
)
def test_settings_that_it_does_not_take(change, message):
    settings = config('BatchedRPNHead', **change)
    for name, value in change.items():
        if 'type' in value and name in settings.train_cfg:
            settings.train_cfg[name] = value
    with pytest.raises(ConfigError, match=message) as error:
        build(settings)
    assert 'RPNHead' in str(error.value)
