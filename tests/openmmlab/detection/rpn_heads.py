"""Region proposal networks, mmdet's and kat_mm's, with equal weights and equal random choices."""

import torch
from mmdet.models.task_modules.prior_generators import anchor_inside_flags
from mmdet.models.task_modules.samplers import RandomSampler
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData

STRIDES = (4, 8, 16)
PROPOSALS = dict(
    nms_pre=60, max_per_img=50, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0
)


def config(kind='RPNHead', **changes):
    train_cfg = dict(
        assigner=dict(
            type='MaxIoUAssigner',
            pos_iou_thr=0.7,
            neg_iou_thr=0.3,
            min_pos_iou=0.3,
            match_low_quality=True,
            ignore_iof_thr=-1,
        ),
        sampler=dict(
            type='RandomSampler',
            num=64,
            pos_fraction=0.5,
            neg_pos_ub=-1,
            add_gt_as_proposals=False,
        ),
        allowed_border=-1,
        pos_weight=-1,
    )
    for name in ('assigner', 'sampler', 'allowed_border', 'pos_weight'):
        if name in changes:
            value = changes.pop(name)
            train_cfg[name] = {**train_cfg[name], **value} if isinstance(value, dict) else value
    head = dict(
        type=kind,
        in_channels=8,
        feat_channels=8,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[4], ratios=[0.5, 1.0, 2.0], strides=list(STRIDES)
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0),
        train_cfg=train_cfg,
        test_cfg=PROPOSALS,
    )
    return ConfigDict({**head, **changes})


def build(settings):
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(settings)


def heads(device='cpu', **changes):
    """Returns mmdet's head and kat_mm's with its weights."""
    stock, batched = (build(config(kind, **changes)) for kind in ('RPNHead', 'BatchedRPNHead'))
    for parameter in stock.parameters():  # outputs that matter: mmdet's are near 0
        torch.nn.init.normal_(parameter, std=0.15)
    batched.load_state_dict(stock.state_dict())
    return stock.to(device), batched.to(device)


def batch(device='cpu', counts=(5, 0, 3), height=96, width=128):
    """Returns maps, and samples of images of different sizes with as many boxes as told."""
    maps = [
        torch.randn(len(counts), 8, -(-height // stride), -(-width // stride), device=device)
        for stride in STRIDES
    ]
    samples = []
    for i, count in enumerate(counts):
        size = (height - 17 * i, width - 23 * i)
        boxes = torch.rand(count, 4) * 60
        boxes[:, 2:] += boxes[:, :2]
        sample = DetDataSample(
            metainfo=dict(
                img_shape=size,
                pad_shape=tuple(-(-side // 16) * 16 for side in size),
                batch_input_shape=(height, width),
                scale_factor=(1.5, 1.25),
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=boxes.to(device), labels=torch.zeros(count, dtype=torch.int64, device=device)
        )
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4, device=device),
            labels=torch.zeros(0, dtype=torch.int64, device=device),
        )
        samples.append(sample)
    return maps, samples


class SamplerByKeys(RandomSampler):
    """mmdet's sampler, which takes the smallest keys; called for one image after the other."""

    def __init__(self, sampler, keys):
        options = ('num', 'pos_fraction', 'neg_pos_ub', 'add_gt_as_proposals')
        super().__init__(**{name: getattr(sampler, name) for name in options})
        self.keys = iter(keys)

    def sample(self, *args, **kwargs):
        self.of_image = next(self.keys)
        return super().sample(*args, **kwargs)

    def random_choice(self, gallery, num):
        return gallery[self.of_image[gallery].argsort()[:num]]


def share_choices(stock, batched, maps, samples):
    """Has both heads draw by the same keys."""
    metas = [sample.metainfo for sample in samples]
    anchors, flags = stock.get_anchors([x.shape[-2:] for x in maps], metas, maps[0].device)
    count = sum(map(len, anchors[0]))
    generator = torch.Generator().manual_seed(0)
    keys = [torch.randperm(count, generator=generator) / count for _ in samples]
    keys = torch.stack(keys).to(maps[0].device)
    batched.draw_keys = lambda shape, device: keys
    inside = [
        anchor_inside_flags(
            torch.cat(each), torch.cat(flag), meta['img_shape'], stock.train_cfg.allowed_border
        )
        for each, flag, meta in zip(anchors, flags, metas, strict=True)
    ]
    stock.sampler = SamplerByKeys(
        stock.sampler, [key[mask] for key, mask in zip(keys, inside, strict=True)]
    )
