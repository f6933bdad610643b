"""RoI heads for a whole batch, against mmdet's."""

import pytest
import roi_heads
import torch
from mmengine.structures import InstanceData

import kat_mm.openmmlab.detection.batched_roi_head  # noqa: F401
from kat_mm.errors import ConfigError
from kat_mm.openmmlab.batches.packed_masks import PackedInstanceMasks
from kat_mm.openmmlab.detection.proposals import Proposals


def losses_and_grads(head, x, proposals, samples):
    x = [level.clone().requires_grad_() for level in x]
    losses = head.loss(x, roi_heads.copied(proposals), samples)
    total = sum(value.sum() for name, value in losses.items() if 'loss' in name)
    head.zero_grad()
    total.backward()
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in head.parameters()]
    return losses, [level.grad for level in x] + grads


def compare(
    device, batch=None, polygons=False, mask_size=28, padded=False, change_masks=None, **changes
):
    changes.setdefault('train_cfg', roi_heads.config().train_cfg | dict(mask_size=mask_size))
    stock = roi_heads.smooth(roi_heads.build(roi_heads.config(**changes), device))
    own = roi_heads.config('BatchedRoIHead', **changes, padded_masks=padded)
    ours = roi_heads.smooth(roi_heads.build(own, device))
    proposals, samples = roi_heads.batch(device=device, polygons=polygons, **(batch or {}))
    if change_masks:
        change_masks([sample.gt_instances for sample in samples])
    x = roi_heads.maps(device, len(samples))
    roi_heads.share_draws(stock, ours, proposals, samples)
    expected, expected_grads = losses_and_grads(stock, x, proposals, samples)
    losses, grads = losses_and_grads(ours, x, proposals, samples)
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        assert padded or value.shape == expected[name].shape, name
        value = value.reshape(expected[name].shape)
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    for found, wanted in zip(grads, expected_grads, strict=True):
        scale = wanted.abs().max().item()
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * scale + 1e-9)
    return losses


@pytest.mark.parametrize(
    'changes',
    [
        {},
        dict(mask=False),
        dict(box=dict(reg_class_agnostic=True), mask=dict(class_agnostic=True)),
        dict(box=dict(loss_bbox=dict(type='SmoothL1Loss', beta=0.5))),
        dict(
            box=dict(
                loss_cls=dict(
                    type='CrossEntropyLoss',
                    class_weight=[1.0, 2.0, 0.5, 1.0, 3.0, 0.25],
                    loss_weight=2.0,
                )
            )
        ),
        dict(box=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=8)),
        dict(mask_roi_extractor=None, mask=dict(num_convs=1), mask_size=14),
    ],
    ids=str,
)
@pytest.mark.parametrize('polygons', [False, True])
@pytest.mark.parametrize('padded', [False, True])
def test_losses_and_gradients_are_those_of_the_stock_head(device, changes, polygons, padded):
    losses = compare(device, polygons=polygons, padded=padded, **changes)
    assert all(value.item() > 0 for value in losses.values())


@pytest.mark.parametrize(
    'box',
    [
        dict(reg_decoded_bbox=True, loss_bbox=dict(type='GIoULoss', loss_weight=10.0)),
        dict(loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True)),
        dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=8, norm_cfg=dict(type='BN')),
        dict(loss_bbox=dict(type='BalancedL1Loss')),
    ],
    ids=str,
)
def test_other_losses_are_mmdets(device, box):
    compare(device, box=box)


@pytest.mark.parametrize(
    'batch',
    [
        dict(gts=(0, 3, 5)),
        dict(gts=(0, 0, 0)),
        dict(gts=(3,), proposals=(7,)),
        dict(gts=(2, 30), proposals=(5, 100)),
        dict(gts=(1, 1), proposals=(0, 20)),
    ],
    ids=str,
)
@pytest.mark.parametrize('add', [True, False])
@pytest.mark.parametrize('padded', [False, True])
def test_few_or_no_objects_and_proposals(device, batch, add, padded):
    sampler = dict(type='RandomSampler', num=48, pos_fraction=0.25, add_gt_as_proposals=add)
    train_cfg = roi_heads.config().train_cfg | dict(sampler=sampler)
    compare(device, batch, train_cfg=train_cfg, padded=padded)


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('padded', [False, True])
def test_bitmaps_and_polygons_in_a_batch(device, padded, packed):
    def change_masks(instances):
        instances[1].masks = roi_heads.random_masks(instances[1].bboxes.cpu(), polygons=True)
        for part in instances if packed else ():
            part.masks = PackedInstanceMasks.pack(part.masks)

    losses = compare(device, padded=padded, change_masks=change_masks)
    assert losses['loss_mask'].item() > 0


@pytest.mark.parametrize('padded', [False, True])
def test_errors_of_mask_targets_are_not_caught(padded, monkeypatch):
    def fail(*args):
        raise TypeError('a bug')

    monkeypatch.setattr('kat_mm.openmmlab.detection.batched_roi_head.mask_targets', fail)
    with pytest.raises(TypeError, match='a bug'):
        compare('cpu', padded=padded)


@pytest.mark.parametrize('padded', [False, True])
def test_no_positive_samples(device, padded):
    sampler = dict(type='RandomSampler', num=16, pos_fraction=0.0, neg_pos_ub=3)
    train_cfg = roi_heads.config().train_cfg | dict(sampler=sampler)
    compare(device, train_cfg=train_cfg, padded=padded)


OTHER_EXTRACTORS = {
    'maximum': dict(roi_layer=dict(pool_mode='max')),
    'all levels': dict(type='GenericRoIExtractor'),
    'all levels, normalized': dict(
        type='GenericRoIExtractor',
        post_cfg=dict(
            type='ConvModule',
            in_channels=roi_heads.CHANNELS,
            out_channels=roi_heads.CHANNELS,
            kernel_size=1,
            norm_cfg=dict(type='BN'),
            inplace=False,
        ),
    ),
}


def with_extractors(cfg, change):
    """Returns the changed extractors of a config."""
    for name in ('bbox_roi_extractor', 'mask_roi_extractor'):
        layer = {**cfg[name].roi_layer, **change.get('roi_layer', {})}
        cfg[name] = {**cfg[name], **change, 'roi_layer': layer}
    return {name: cfg[name] for name in ('bbox_roi_extractor', 'mask_roi_extractor')}


@pytest.mark.parametrize('extractor', OTHER_EXTRACTORS)
@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize('batch', [{}, dict(gts=(1, 1), proposals=(0, 20))], ids=str)
def test_extractors_of_mmdet_and_rows_that_fill_up(device, extractor, padded, batch):
    extractors = with_extractors(roi_heads.config(), OTHER_EXTRACTORS[extractor])
    sampler = dict(type='RandomSampler', num=80, pos_fraction=0.25)
    train_cfg = roi_heads.config().train_cfg | dict(sampler=sampler)
    compare(device, batch, train_cfg=train_cfg, padded=padded, **extractors)


@pytest.mark.parametrize('padded', [False, True])
def test_no_proposals_and_no_ground_truth_among_them(device, padded):
    sampler = dict(type='RandomSampler', num=8, pos_fraction=0.25, add_gt_as_proposals=False)
    train_cfg = roi_heads.config().train_cfg | dict(sampler=sampler)
    cfg = roi_heads.config('BatchedRoIHead', train_cfg=train_cfg, padded_masks=padded)
    head = roi_heads.build(cfg, device)
    proposals, samples = roi_heads.batch(gts=(2, 1), proposals=(0, 0), device=device)
    losses, grads = losses_and_grads(head, roi_heads.maps(device, 2), proposals, samples)
    assert not any(value.any() for name, value in losses.items() if 'loss' in name)
    assert not any(grad.any() for grad in grads)


def test_weights_of_positives_and_bounds_of_negatives(device):
    sampler = dict(type='RandomSampler', num=48, pos_fraction=0.25, neg_pos_ub=2)
    compare(device, train_cfg=roi_heads.config().train_cfg | dict(sampler=sampler, pos_weight=2.5))


def test_padded_proposals_are_taken(device):
    ours = roi_heads.build(roi_heads.config('BatchedRoIHead'), device)
    proposals, samples = roi_heads.batch(device=device)
    x = roi_heads.maps(device)
    roi_heads.share_draws(ours, ours, proposals, samples)
    padded = torch.nn.utils.rnn.pad_sequence([p.bboxes for p in proposals], True)

    counts = torch.tensor([len(p) for p in proposals], device=device)
    expected = ours.loss(x, proposals, samples)
    tensors = Proposals(padded, torch.zeros_like(padded[..., 0]), counts)
    losses = ours.loss(x, tensors, samples)
    assert tensors.are_tensors
    assert all(torch.equal(losses[name], value) for name, value in expected.items())


def test_proposals_that_were_changed_are_taken(device):
    ours = roi_heads.build(roi_heads.config('BatchedRoIHead'), device)
    proposals, samples = roi_heads.batch(device=device)
    x = roi_heads.maps(device)
    roi_heads.share_draws(ours, ours, proposals, samples)
    counts = torch.tensor([len(p) for p in proposals], device=device)
    boxes = torch.rand(3, 80, 4, device=device)
    changed = Proposals(boxes, boxes[..., 0], counts)
    for i, instances in enumerate(proposals):
        changed[i] = instances
    expected = ours.loss(x, proposals, samples)
    losses = ours.loss(x, changed, samples)
    assert all(torch.equal(losses[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(shared_head=dict(type='ResLayer', depth=50)), 'it takes no shared_head'),
        (
            dict(train_cfg=dict(sampler=dict(type='OHEMSampler', num=8, pos_fraction=0.5))),
            'train_cfg.sampler must be a RandomSampler',
        ),
        (
            dict(
                train_cfg=dict(assigner=dict(type='GridAssigner', pos_iou_thr=0.5, neg_iou_thr=0.3))
            ),
            'train_cfg.assigner must be a MaxIoUAssigner',
        ),
        (
            dict(train_cfg=dict(assigner=dict(ignore_iof_thr=0.5))),
            'train_cfg.assigner takes no ignore_iof_thr',
        ),
        (
            dict(train_cfg=dict(assigner=dict(neg_iou_thr=0))),
            'train_cfg.assigner.neg_iou_thr must be a float or a tuple, got 0',
        ),
        (
            dict(train_cfg=dict(assigner=dict(neg_iou_thr=[0.1, 0.5]))),
            'train_cfg.assigner.neg_iou_thr must be a float or a tuple',
        ),
        (
            dict(
                train_cfg=dict(
                    assigner=dict(iou_calculator=dict(type='BboxOverlaps2D', dtype='fp16'))
                )
            ),
            'train_cfg.assigner.iou_calculator must be BboxOverlaps2D without a dtype',
        ),
        (
            dict(box=dict(type='DIIHead', _delete=True)),
            'bbox_head must have the targets',
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_what_it_cannot_do_is_named(changes, message):
    cfg = roi_heads.config('BatchedRoIHead')
    if changes.get('box', {}).pop('_delete', False):
        cfg.bbox_head = dict(type='DIIHead', num_classes=5, in_channels=16)
    for part, values in changes.get('train_cfg', {}).items():
        old = cfg.train_cfg[part]
        cfg.train_cfg[part] = values if 'type' in values else old | values
    if 'shared_head' in changes:
        cfg.shared_head = changes['shared_head']
    with pytest.raises(ConfigError, match=f'BatchedRoIHead: {message}.*use StandardRoIHead'):
        roi_heads.build(cfg)


def same_detections(found, expected):
    assert len(found) == len(expected)
    for ours, stock in zip(found, expected, strict=True):
        assert len(ours) == len(stock)
        assert torch.equal(ours.labels, stock.labels)
        torch.testing.assert_close(ours.scores, stock.scores, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.bboxes, stock.bboxes, rtol=1e-5, atol=1e-4)
        if 'masks' in stock:
            assert ours.masks.dtype == stock.masks.dtype
            assert ours.masks.shape == stock.masks.shape
            assert (ours.masks != stock.masks).sum() <= 1e-4 * stock.masks.numel()


@pytest.mark.parametrize('rescale', [False, True])
@pytest.mark.parametrize('mask', [False, None])
@pytest.mark.parametrize(
    ('box', 'test_cfg'),
    [
        ({}, {}),
        (dict(reg_class_agnostic=True), dict(max_per_img=3)),
        ({}, dict(score_thr=0.9999)),
        ({}, dict(nms=dict(type='soft_nms', iou_threshold=0.5, min_score=0.05))),
        ({}, dict(nms=dict(type='nms', iou_threshold=0.5, class_agnostic=True))),
    ],
    ids=str,
)
@torch.no_grad()
def test_detections_are_those_of_the_stock_head(device, rescale, mask, box, test_cfg):
    heads = []
    for kind in ('StandardRoIHead', 'BatchedRoIHead'):
        cfg = roi_heads.config(kind, box, mask)
        cfg.test_cfg |= test_cfg
        heads.append(roi_heads.build(cfg, device, trained=True).eval())
    proposals, samples = roi_heads.batch(device=device, proposals=(60, 1, 80))
    x = roi_heads.maps(device)
    expected, found = (
        head.predict(x, roi_heads.copied(proposals), samples, rescale) for head in heads
    )
    if test_cfg.get('score_thr', 0) < 0.9:
        assert sum(len(image) for image in expected) > 5
    same_detections(found, expected)


@pytest.mark.parametrize('extractor', OTHER_EXTRACTORS)
@torch.no_grad()
def test_detections_of_padded_images_by_extractors_of_mmdet(device, extractor):
    heads = []
    for kind in ('StandardRoIHead', 'BatchedRoIHead'):
        extractors = with_extractors(roi_heads.config(), OTHER_EXTRACTORS[extractor])
        cfg = roi_heads.config(kind, **extractors)
        heads.append(roi_heads.build(cfg, device, trained=True).eval())
    proposals, samples = roi_heads.batch(device=device, proposals=(60, 1, 80))
    x = roi_heads.maps(device)
    expected, found = (head.predict(x, roi_heads.copied(proposals), samples) for head in heads)
    assert sum(len(image) for image in expected) > 5
    same_detections(found, expected)


@torch.no_grad()
def test_no_proposals_no_detections(device):
    heads = [
        roi_heads.build(roi_heads.config(kind), device).eval()
        for kind in ('StandardRoIHead', 'BatchedRoIHead')
    ]
    _, samples = roi_heads.batch(device=device)
    proposals = [InstanceData(bboxes=torch.zeros(0, 4, device=device)) for _ in samples]
    x = roi_heads.maps(device)
    expected, found = (head.predict(x, list(proposals), samples) for head in heads)
    same_detections(found, expected)


@pytest.mark.gpu
@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize('class_weight', [None, [1.0, 2.0, 0.5, 1.0, 3.0, 0.25]])
def test_the_host_waits_at_most_once(padded, class_weight):
    if not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')
    box = dict(loss_cls=dict(type='CrossEntropyLoss', class_weight=class_weight))
    head = roi_heads.build(roi_heads.config('BatchedRoIHead', box, padded_masks=padded), 'cuda')
    proposals, samples = roi_heads.batch(device='cuda')
    x = [level.requires_grad_() for level in roi_heads.maps('cuda')]
    head.loss(x, proposals, samples)  # fills the pool of pinned memory
    torch.cuda.set_sync_debug_mode('error')  # of an event, which the head waits for, it is silent
    try:
        sum(v.sum() for k, v in head.loss(x, proposals, samples).items() if 'loss' in k).backward()
    finally:
        torch.cuda.set_sync_debug_mode('default')
