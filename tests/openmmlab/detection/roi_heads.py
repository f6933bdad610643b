"""Small RoI heads, batches for them, and the same draws of samples for mmdet's and ours."""

from functools import partial

import numpy as np
import torch
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

STRIDES = [4, 8, 16, 32]
SIZE = (128, 192)
CLASSES = 5
CHANNELS = 16


def config(kind='StandardRoIHead', box=None, mask=None, **changes) -> ConfigDict:
    """Returns the RoI head of mmdet's Mask R-CNN, smaller; `mask=False` is Faster R-CNN's."""

    def extractor(size):
        layer = dict(type='RoIAlign', output_size=size, sampling_ratio=0)
        return dict(
            type='SingleRoIExtractor',
            roi_layer=layer,
            out_channels=CHANNELS,
            featmap_strides=STRIDES,
        )

    box_head = dict(
        type='Shared2FCBBoxHead',
        in_channels=CHANNELS,
        fc_out_channels=32,
        roi_feat_size=7,
        num_classes=CLASSES,
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]),
        loss_cls=dict(type='CrossEntropyLoss', loss_weight=1.5),
        loss_bbox=dict(type='L1Loss', loss_weight=2.0),
    )
    mask_head = dict(
        type='FCNMaskHead',
        num_convs=2,
        in_channels=CHANNELS,
        conv_out_channels=CHANNELS,
        num_classes=CLASSES,
    )
    result = dict(
        type=kind,
        bbox_roi_extractor=extractor(7),
        bbox_head={**box_head, **(box or {})},
        train_cfg=dict(
            assigner=dict(
                type='MaxIoUAssigner',
                pos_iou_thr=0.5,
                neg_iou_thr=0.5,
                min_pos_iou=0.5,
                match_low_quality=True,
                ignore_iof_thr=-1,
            ),
            sampler=dict(type='RandomSampler', num=48, pos_fraction=0.25, add_gt_as_proposals=True),
            mask_size=28,
            pos_weight=-1,
        ),
        test_cfg=dict(
            score_thr=0.05,
            nms=dict(type='nms', iou_threshold=0.5),
            max_per_img=20,
            mask_thr_binary=0.5,
        ),
    )
    if mask is not False:
        result |= dict(
            mask_roi_extractor=extractor(14),
            mask_head={**mask_head, **(mask or {})},
        )
    return ConfigDict(result | changes)


def build(cfg, device='cpu', trained=False):
    """Builds a head; `trained` has it tell classes apart, as one that has learned does."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        head = MMDET_MODELS.build(cfg)
    head.init_weights()
    torch.nn.init.normal_(head.bbox_head.fc_reg.weight, std=0.02)
    if trained:
        torch.nn.init.normal_(head.bbox_head.fc_cls.weight, std=1.0)
    return head.to(device)


def smooth(head):
    """Replaces ReLUs: one near zero, open here and shut there, would change whole gradients."""
    for module in [*head.modules()]:
        for name, child in module.named_children():
            if isinstance(child, torch.nn.ReLU):
                setattr(module, name, torch.nn.Softplus())
    return head


def maps(device='cpu', batch=3, dtype=torch.float32):
    return tuple(
        torch.randn(batch, CHANNELS, SIZE[0] // s, SIZE[1] // s, device=device).to(dtype)
        for s in STRIDES
    )


def random_boxes(count):
    centre = torch.rand(count, 2) * torch.tensor([SIZE[1], SIZE[0]])
    half = torch.exp(torch.rand(count, 2) * 2.5 + 1.5) / 2
    limit = torch.tensor([SIZE[1], SIZE[0]]).float()
    low, high = (centre - half).clamp(min=0), torch.minimum(centre + half, limit)
    return torch.cat([low, torch.maximum(high, low + 1)], 1)


def random_masks(boxes, polygons):
    if polygons:
        corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].double().numpy()
        shifts = np.random.default_rng(0).uniform(-2, 2, corners.shape)
        return PolygonMasks([[row] for row in corners + shifts], *SIZE)
    bitmaps = np.zeros((len(boxes), *SIZE), np.uint8)
    for bitmap, (x1, y1, x2, y2) in zip(bitmaps, boxes.int().tolist(), strict=True):
        bitmap[y1 : y2 + 1, x1 : x2 + 1] = np.random.default_rng(x1).random() < 0.9
        bitmap[y1 : (y1 + y2) // 2, x1 : (x1 + x2) // 2] = 0
    return BitmapMasks(bitmaps, *SIZE)


def batch(gts=(4, 1, 6), proposals=(60, 30, 80), device='cpu', polygons=False, near=True):
    """Returns proposals and data samples; half of the proposals lie near ground truth."""
    results, samples = [], []
    for count, number in zip(gts, proposals, strict=True):
        gt = random_boxes(count)
        boxes = random_boxes(number)
        if count and near:
            half = number // 2
            boxes[:half] = gt[torch.randint(count, (half,))] + torch.randn(half, 4) * 3
            boxes[:half, 2:] = torch.maximum(boxes[:half, 2:], boxes[:half, :2] + 1)
        results.append(InstanceData(bboxes=boxes.to(device), scores=torch.rand(number)))
        sample = DetDataSample(
            metainfo=dict(
                img_shape=SIZE,
                ori_shape=(SIZE[0] * 2, SIZE[1] * 2),
                scale_factor=(0.5, 0.5),
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=gt.to(device),
            labels=torch.randint(CLASSES, (count,)).to(device),
            masks=random_masks(gt, polygons),
        )
        samples.append(sample)
    return results, samples


def copied(proposals):
    """Returns new InstanceData, as mmdet's head takes the boxes out of those it is given."""
    return [InstanceData(bboxes=p.bboxes.clone(), scores=p.scores) for p in proposals]


def share_draws(stock, ours, proposals, samples):
    """Has both heads draw by the same keys."""
    counts = [(len(s.gt_instances.bboxes), len(p)) for s, p in zip(samples, proposals, strict=True)]
    padded = max(max(g for g, _ in counts), 1), max(1, *(k for _, k in counts))
    keys = torch.rand(len(counts), sum(padded))
    own = [
        torch.cat([row[:g], row[padded[0] :][:k]]) for row, (g, k) in zip(keys, counts, strict=True)
    ]
    if not stock.bbox_sampler.add_gt_as_proposals:
        keys = keys[:, padded[0] :]
        own = [row[:k] for row, (_, k) in zip(keys, counts, strict=True)]
    image, sample = iter(own), type(stock.bbox_sampler).sample

    def sample_next(*args, **kwargs):
        key = next(image)
        stock.bbox_sampler.random_choice = lambda gallery, num: gallery[
            key.to(gallery.device)[gallery].argsort()[:num]
        ]
        return sample(stock.bbox_sampler, *args, **kwargs)

    stock.bbox_sampler.sample = sample_next
    device = next(ours.parameters()).device
    ours._draw = partial(type(ours)._draw, ours, keys=keys.to(device))
