"""mmdet's region proposal network with all images and levels at once, by one word of a config.

`rpn_head=dict(type='BatchedRPNHead', ...)` is RPNHead in its arguments, weights and results. Its
targets, samples, losses and proposals are computed for the whole batch, and in training with the
usual losses the host never waits for the GPU.
"""

import torch
from mmdet.models.dense_heads import RPNHead
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.models.utils import unpack_gt_instances
from mmengine.registry import MODELS
from torch import Tensor

from ...detection import assign, box_deltas, sample
from ..channels_last import init_in_order, put_channels_last
from . import batched_rpn_layers as layers
from .anchor_grid import AnchorGrid, Grid, valid_anchors
from .batched_rpn_checks import check_head, takes_cfg
from .batched_rpn_proposals import propose
from .ground_truth import padded_ground_truth, to_device
from .losses import box_loss, classification_loss
from .proposals import Proposals


@MODELS.register_module()
class BatchedRPNHead(RPNHead):
    """mmdet's RPNHead, which handles a batch at once; takes its arguments.

    Losses and their gradients are those of RPNHead for the same random choices, which are made on
    the device of the maps. A loss is one number, not one for each level, which mmdet would add.
    Under autocast, losses and proposals are computed in fp32 from the outputs of the layers, where
    RPNHead computes scores, anchors and boxes in half precision.

    In training the host waits for the GPU once with `allowed_border` of 0 or above, where an image
    may have no anchor; and as often as mmdet's losses do where they are not a CrossEntropyLoss
    without `ignore_index` and an L1Loss or SmoothL1Loss.

    Proposals are a list for mmdet's RoI heads, which the host waits for once, and tensors for heads
    that read those; see `Proposals`. With another box coder than DeltaXYWHBBoxCoder, another
    suppression than plain NMS, and for ignored boxes with `ignore_iof_thr` above 0, RPNHead's own
    code runs.

    Raises:
        ConfigError: for another assigner than MaxIoUAssigner, another sampler than RandomSampler,
            and for losses that are not a mean over anchors.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        check_head(self)
        put_channels_last(self)
        self.grid = AnchorGrid(self.prior_generator)

    def init_weights(self) -> None:
        init_in_order(super().init_weights, self)

    def draw_keys(self, shape: tuple[int, int], device: torch.device) -> Tensor:
        """Draws a number in [0, 1) for each anchor; the smallest ones decide which are sampled."""
        return torch.rand(shape, device=device)

    def loss(self, x: tuple[Tensor], batch_data_samples: list) -> dict[str, Tensor]:
        gt, ignored, metas = unpack_gt_instances(batch_data_samples)
        if self._heeds_ignored(ignored) or not self._is_as_built():
            return super().loss(x, batch_data_samples)
        return self._loss(*self._outputs(x), gt, metas)

    def loss_and_predict(
        self, x: tuple[Tensor], batch_data_samples: list, proposal_cfg=None
    ) -> tuple[dict[str, Tensor], list]:
        gt, ignored, metas = unpack_gt_instances(batch_data_samples)
        can_propose = self._is_as_built() and self._can_propose(proposal_cfg)
        if self._heeds_ignored(ignored) or not can_propose:
            return super().loss_and_predict(x, batch_data_samples, proposal_cfg)
        outputs = self._outputs(x)
        return self._loss(*outputs, gt, metas), self._propose(*outputs, metas, proposal_cfg)

    def predict(self, x: tuple[Tensor], batch_data_samples: list, rescale: bool = False) -> list:
        if not self._is_as_built() or not self._can_propose(None):
            return super().predict(x, batch_data_samples, rescale)
        metas = [sample.metainfo for sample in batch_data_samples]
        return self._propose(*self._outputs(x), metas, rescale=rescale)

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        batch_gt_instances: list,
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: list | None = None,
    ) -> dict[str, Tensor]:
        if self._heeds_ignored(batch_gt_instances_ignore):
            return super().loss_by_feat(
                cls_scores,
                bbox_preds,
                batch_gt_instances,
                batch_img_metas,
                batch_gt_instances_ignore,
            )
        outputs = *layers.flatten(cls_scores, bbox_preds), self._grid(cls_scores)
        return self._loss(*outputs, batch_gt_instances, batch_img_metas)

    def predict_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        score_factors: list[Tensor] | None = None,
        batch_img_metas: list[dict] | None = None,
        cfg=None,
        rescale: bool = False,
        with_nms: bool = True,
    ) -> list:
        if not self._can_propose(cfg, with_nms) or score_factors is not None:
            return super().predict_by_feat(
                cls_scores, bbox_preds, score_factors, batch_img_metas, cfg, rescale, with_nms
            )
        outputs = *layers.flatten(cls_scores, bbox_preds), self._grid(cls_scores)
        return self._propose(*outputs, batch_img_metas, cfg, rescale)

    def _is_as_built(self) -> bool:
        """Tells whether the methods that are left out here are still those of this class."""
        return all(
            getattr(getattr(self, name), '__func__', None) is getattr(BatchedRPNHead, name)
            for name in ('forward', 'forward_single', 'loss_by_feat', 'predict_by_feat')
        )

    def _outputs(self, x: tuple[Tensor]) -> tuple[Tensor, Tensor, Grid]:
        """Computes scores [B, N, C] and deltas [B, N, 4] of all anchors."""
        return *layers.outputs(self, x), self._grid(x)

    def _grid(self, maps: list[Tensor]) -> Grid:
        return self.grid([x.shape[-2:] for x in maps], maps[0].device)

    def _heeds_ignored(self, ignored: list | None) -> bool:
        has_any = any(gt is not None and len(gt.bboxes) for gt in ignored or ())
        return has_any and self.assigner.ignore_iof_thr > 0

    def _can_propose(self, cfg, with_nms: bool = True) -> bool:
        return with_nms and takes_cfg(self.test_cfg if cfg is None else cfg, self.bbox_coder)

    def _loss(
        self,
        scores: Tensor,
        deltas: Tensor,
        grid: Grid,
        batch_gt_instances: list,
        metas: list[dict],
    ) -> dict[str, Tensor]:
        """Computes the losses of the flattened outputs [B, N, C] and [B, N, 4]."""
        batch, count = scores.shape[:2]
        with torch.no_grad():
            targets = self._targets(grid, batch_gt_instances, metas)
        anchors, gt_boxes, labels, is_positive, is_sampled, indices = targets
        flat = indices + torch.arange(0, batch * count, count, device=indices.device)[:, None]
        with torch.autocast(scores.device.type, enabled=False):
            scores, deltas = (
                x.flatten(0, 1).index_select(0, flat.flatten()).float() for x in (scores, deltas)
            )
            positives, sampled = is_positive.sum(1), is_sampled.sum(1)
            factor = (positives.clamp(min=1) + (sampled - positives).clamp(min=1)).sum()
            weight = is_sampled.float()
            if self.train_cfg['pos_weight'] > 0:
                weight = weight.masked_fill(is_positive, self.train_cfg['pos_weight'])
            classification = classification_loss(
                self.loss_cls, scores, labels.flatten(), weight.flatten(), factor
            )
            weight = is_positive.float().flatten()[:, None].expand(-1, deltas.shape[1])
            predicted, wanted = self._box_targets(anchors, deltas, gt_boxes)
            box = box_loss(self.loss_bbox, predicted, wanted, weight, factor)
        return dict(loss_rpn_cls=classification, loss_rpn_bbox=box)

    def _targets(self, grid: Grid, batch_gt_instances: list, metas: list[dict]) -> tuple:
        """Assigns and samples anchors.

        Returns:
            The sampled anchors and their ground truth, [B, num, 4] (themselves where they are not
            positive); their labels, whether they are positive, whether they are there, and their
            indices, [B, num].
        """
        device, config = grid.anchors.device, self.assigner
        gt_boxes, gt_labels, gt_counts = padded_ground_truth(batch_gt_instances, device)
        pads, sizes = ([meta[k][1::-1] for meta in metas] for k in ('pad_shape', 'img_shape'))
        sizes = to_device([[*pad, *size] for pad, size in zip(pads, sizes, strict=True)], device)
        border = self.train_cfg['allowed_border']
        valid = valid_anchors(grid, sizes, pads, border)
        if border >= 0 and not valid.any(1).all():
            raise ValueError(
                f'an image has no anchor within {border} pixels of its border: check the sizes of '
                'images and anchors, or set allowed_border=-1'
            )
        assigned, _ = assign(
            grid.anchors[None],
            valid,
            gt_boxes,
            gt_counts,
            config.pos_iou_thr,
            config.neg_iou_thr,
            config.min_pos_iou,
            config.match_low_quality,
            config.gt_max_assign_all,
        )
        keys = self.draw_keys(assigned.shape, device)
        indices, is_positive, is_sampled = sample(
            assigned, self.sampler.num, self.sampler.pos_fraction, self.sampler.neg_pos_ub, keys
        )
        of_gt = (assigned.gather(1, indices) - 1).clamp(min=0)
        anchors = grid.anchors[indices]
        of_box = of_gt[..., None].expand(-1, -1, 4)
        gt_boxes = gt_boxes.gather(1, of_box).where(is_positive[..., None], anchors)
        labels = gt_labels.gather(1, of_gt).masked_fill(~is_positive, self.num_classes)
        return anchors, gt_boxes, labels, is_positive, is_sampled, indices

    def _box_targets(
        self, anchors: Tensor, deltas: Tensor, gt_boxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns what the box loss compares, [M, 4]: deltas, or boxes with reg_decoded_bbox."""
        anchors, gt_boxes = anchors.flatten(0, 1), gt_boxes.flatten(0, 1)
        coder = self.bbox_coder
        if self.reg_decoded_bbox:
            return coder.decode(anchors, deltas), gt_boxes
        if type(coder) is DeltaXYWHBBoxCoder:
            return deltas, box_deltas.encode(anchors, gt_boxes, coder.means, coder.stds)
        return deltas, coder.encode(anchors, gt_boxes)

    def _propose(
        self,
        scores: Tensor,
        deltas: Tensor,
        grid: Grid,
        metas: list[dict],
        cfg=None,
        rescale: bool = False,
    ) -> Proposals:
        cfg = self.test_cfg if cfg is None else cfg
        device = scores.device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            scores = scores.float()
            scores = scores.sigmoid() if self.use_sigmoid_cls else scores.softmax(-1)
            numbers = [[*meta['img_shape'][1::-1]] for meta in metas]
            if rescale:
                numbers = [
                    [*size, *(1 / s for s in meta['scale_factor'])]
                    for size, meta in zip(numbers, metas, strict=True)
                ]
            numbers = to_device(numbers, device)
            return propose(
                scores[..., 0],
                deltas,
                grid,
                self.bbox_coder,
                cfg,
                limits=numbers[:, :2].repeat(1, 2),
                factors=numbers[:, 2:].repeat(1, 2) if rescale else None,
            )
