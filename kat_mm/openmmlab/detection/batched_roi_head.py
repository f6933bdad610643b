"""Mask and Faster R-CNN's RoI head for a whole batch at once, by one word of a config.

`roi_head=dict(type='BatchedRoIHead', ...)` is StandardRoIHead in results. mmdet goes image by image
and level by level, and asks the GPU at each step how many boxes there are; here the samples of a
batch have one fixed shape, in which masks say what counts.
"""

from collections.abc import Sequence

import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.models.utils import unpack_gt_instances
from mmdet.structures.bbox import bbox2roi
from mmdet.structures.mask import mask_target
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from ...detection import mask_targets
from ...detection.constants import constant
from ...errors import ConfigError
from ..batches.packed_masks import are_of_one_kind, packed_masks
from ..channels_last import channels_last, init_in_order, put_channels_last
from .choice_checks import unsupported_choice
from .roi_extractor import is_poolable, pool_rois
from .roi_losses import (
    box_losses,
    box_targets,
    has_batch_norm,
    mask_loss,
    takes_mask_rows,
    takes_rows,
)
from .roi_predictions import paste_predictions, predict_boxes, takes_masks, takes_predictions
from .roi_samples import RoISamples, draw_samples, padded_proposals


@MODELS.register_module()
class BatchedRoIHead(StandardRoIHead):
    """mmdet's StandardRoIHead, computed for all images and levels together; takes its arguments.

    Args:
        padded_masks: whether the mask branch takes as many rows as there can be positive samples,
            so that the host waits for nothing. It is for small batches, where the GPU would run out
            of work; in large ones the rows without a mask cost more.
        args, kwargs: those of StandardRoIHead.

    Losses, accuracy and gradients are those of StandardRoIHead, given the same draws of samples,
    which are made on the GPU. Coordinates of RoIs stay fp32 under autocast. The host waits once for
    the GPU in training, for the number of positive samples, when the box branch is on its way.

    It takes a box head whose targets are BBoxHead's, with DeltaXYWHBBoxCoder; an FCNMaskHead, or
    none; a MaxIoUAssigner without ignored boxes and a RandomSampler. Losses other than a softmax
    cross entropy and L1 or smooth L1 of deltas (IoU losses, decoded boxes), and box heads or RoI
    extractors with batch normalization, are computed by mmdet of the samples without padding, for
    which the host waits once more, and as often as mmdet does. RoI extractors that pool otherwise
    than RoIAlign's mean, and predictions with other than plain NMS by class or without test_cfg,
    are mmdet's, with its waits.

    Raises:
        ConfigError: for a shared head, another assigner or sampler, and heads with targets of their
            own: StandardRoIHead takes them.
    """

    def __init__(self, *args, padded_masks: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self.padded_masks = padded_masks
        if reason := self._unsupported():
            raise ConfigError(f'{type(self).__name__}: {reason}; use StandardRoIHead')
        put_channels_last(*self._convolutional())

    def init_weights(self) -> None:
        init_in_order(super().init_weights, *self._convolutional())

    def _convolutional(self) -> list[nn.Module]:
        """Returns the heads whose first layer is a convolution."""
        heads = (self.bbox_head, getattr(self, 'mask_head', None))
        return [head for head in heads if head is not None and _begins_with_convolution(head)]

    def _unsupported(self) -> str | None:
        """Names what in the config this head cannot do, if anything."""
        if self.with_shared_head:
            return 'it takes no shared_head'
        if not self.with_bbox:
            return 'it takes a bbox_head'
        head, mask_head = self.bbox_head, getattr(self, 'mask_head', None)
        for name in ('get_targets', '_get_targets_single', 'loss_and_target', 'loss'):
            if getattr(type(head), name, None) is not getattr(BBoxHead, name):
                return f'bbox_head must have the targets and losses of BBoxHead, got {type(head)}'
        if type(head.bbox_coder) is not DeltaXYWHBBoxCoder or head.predict_box_type != 'hbox':
            return f'bbox_coder must be DeltaXYWHBBoxCoder, got {type(head.bbox_coder)}'
        if mask_head is not None:
            for name in ('get_targets', 'loss_and_target'):
                if getattr(type(mask_head), name, None) is not getattr(FCNMaskHead, name):
                    return f'mask_head must have the targets of FCNMaskHead, got {type(mask_head)}'
        return self._unsupported_training() if self.train_cfg else None

    def _unsupported_training(self) -> str | None:
        assigner, sampler = self.bbox_assigner, self.bbox_sampler
        if reason := unsupported_choice(assigner, sampler):
            return reason
        if assigner.ignore_iof_thr > 0:
            return 'train_cfg.assigner takes no ignore_iof_thr'
        return None

    # --- features --------------------------------------------------------------------------------

    def _features(self, extractor: nn.Module, head: nn.Module, x: Sequence[Tensor], rois: Tensor):
        """Pools RoIs, in the layout that a GPU's kernels for the first layer of `head` take."""
        maps = x[: extractor.num_inputs]
        if not is_poolable(extractor):
            # Other kernels take neither rows that fill up nor, all of them, maps of any layout. A
            # box of a pixel has a sample in every bin: an empty one has no maximum.
            box = constant([0, 0, 0, 1, 1], rois)
            rois = torch.where(rois[:, :1] < 0, box, rois)
            return extractor(tuple(level.contiguous() for level in maps), rois)
        is_last = rois.is_cuda and _begins_with_convolution(head)
        return pool_rois(extractor, maps, rois, channels_last=is_last)

    def _bbox_forward(self, x: Sequence[Tensor], rois: Tensor) -> dict[str, Tensor]:
        features = self._features(self.bbox_roi_extractor, self.bbox_head, x, rois)
        cls_score, bbox_pred = self.bbox_head(features)
        return dict(cls_score=cls_score, bbox_pred=bbox_pred, bbox_feats=features)

    def _mask_forward(self, x, rois=None, pos_inds=None, bbox_feats=None) -> dict[str, Tensor]:
        if rois is not None:
            features = self._features(self.mask_roi_extractor, self.mask_head, x, rois)
        else:
            features = bbox_feats[pos_inds]
        return dict(mask_preds=self.mask_head(features), mask_feats=features)

    # --- training --------------------------------------------------------------------------------

    def loss(self, x, rpn_results_list, batch_data_samples) -> dict[str, Tensor]:
        gt_instances, _, _ = unpack_gt_instances(batch_data_samples)
        if x[0].is_cuda and is_poolable(self.bbox_roi_extractor):  # once for both extractors
            x = channels_last(x)
        samples = self._draw(rpn_results_list, gt_instances, x[0].device)
        images = len(batch_data_samples)
        # With rows that fill up, which would count in the statistics of a normalized batch.
        is_whole = takes_rows(self.bbox_head) and not has_batch_norm(self.bbox_roi_extractor)
        if not is_whole:
            samples = samples.without_filling()
        takes_all = self.padded_masks and is_whole and self.with_mask
        if takes_all:
            extractor = self.mask_roi_extractor
            takes_all = takes_mask_rows(self.mask_head) and not has_batch_norm(extractor)
            takes_all = takes_all and _are_packable(gt_instances)
        counts = _Counts(samples, images) if self.with_mask and not takes_all else None
        losses, features = self._box_losses(x, samples, is_whole)
        if takes_all:
            losses |= self._padded_mask_losses(x, samples, images, features, gt_instances)
        elif self.with_mask:
            losses |= self._mask_losses(x, samples, counts, features, gt_instances)
        return losses

    def _draw(self, proposals, gt_instances, device, keys=None) -> RoISamples:
        return draw_samples(
            proposals, gt_instances, self.bbox_assigner, self.bbox_sampler, device, keys
        )

    def _box_losses(
        self, x, samples: RoISamples, is_whole: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        head, rois = self.bbox_head, samples.rois()
        results = self._bbox_forward(x, rois)
        targets = box_targets(head, samples, self.train_cfg.pos_weight)
        prediction = results['cls_score'], results['bbox_pred']
        if is_whole:
            losses = box_losses(head, *prediction, samples, targets)
        else:
            losses = head.loss(*prediction, rois, *targets)
        return losses, results['bbox_feats']

    def _mask_losses(
        self, x, samples: RoISamples, counts: '_Counts', bbox_feats: Tensor, gt_instances
    ) -> dict[str, Tensor]:
        order = samples.positives_first()
        per_image = counts.wait()
        rows = order[: sum(per_image)]
        positives = samples.take(rows)
        if self.share_roi_extractor:
            results = self._mask_forward(x, pos_inds=rows, bbox_feats=bbox_feats)
        else:
            results = self._mask_forward(x, positives.rois())
        prediction = results['mask_preds']
        if not len(rows):
            return {'loss_mask': prediction.sum()}
        if _are_packable(gt_instances):
            targets = self._mask_targets(positives, positives.gt_indices, gt_instances)
        else:
            boxes, indices = (v.split(per_image) for v in (positives.boxes, positives.gt_indices))
            masks = [instances.masks for instances in gt_instances]
            targets = mask_target(boxes, indices, masks, self.train_cfg)
        return {
            'loss_mask': self.mask_head.loss_mask(prediction, targets, self._classes(positives))
        }

    def _padded_mask_losses(
        self, x, samples: RoISamples, images: int, bbox_feats: Tensor, gt_instances
    ) -> dict[str, Tensor]:
        """Computes the mask loss of all rows that could be positive, by their number."""
        most = int(self.bbox_sampler.num * self.bbox_sampler.pos_fraction)
        rows = samples.first_of_images(images, most)
        rows.is_sampled = rows.is_positive
        if self.share_roi_extractor:
            of_images = bbox_feats.unflatten(0, (images, -1))[:, :most]
            prediction = self.mask_head(of_images.flatten(0, 1))
        else:
            prediction = self._mask_forward(x, rows.rois())['mask_preds']
        indices = torch.where(rows.is_positive, rows.gt_indices, -1)
        targets = self._mask_targets(rows, indices, gt_instances)
        classes = self._classes(rows)
        return {
            'loss_mask': mask_loss(self.mask_head, prediction, targets, classes, rows.is_positive)
        }

    def _classes(self, rows: RoISamples) -> Tensor:
        labels = rows.gt_labels
        return torch.zeros_like(labels) if self.mask_head.class_agnostic else labels

    def _mask_targets(self, rows: RoISamples, indices: Tensor, gt_instances) -> Tensor:
        """Returns what FCNMaskHead.get_targets does, [R, *mask_size] in fp32."""
        is_binary = not self.train_cfg.get('soft_mask_target', False)
        packed = packed_masks([instances.masks for instances in gt_instances], rows.boxes.device)
        size = _pair(self.train_cfg.mask_size)
        return mask_targets(packed, rows.boxes, rows.images, indices, size, is_binary)

    # --- prediction ------------------------------------------------------------------------------

    def predict_bbox(
        self, x, batch_img_metas, rpn_results_list, rcnn_test_cfg, rescale=False
    ) -> list:
        boxes, counts = padded_proposals(rpn_results_list, x[0].device)
        if not takes_predictions(self.bbox_head, rcnn_test_cfg) or not boxes.shape[1]:
            arguments = x, batch_img_metas, rpn_results_list, rcnn_test_cfg, rescale
            return super().predict_bbox(*arguments)
        places = torch.arange(boxes.shape[1], device=boxes.device)
        images = torch.arange(len(boxes), device=boxes.device)[:, None]
        is_box = places < counts[:, None]
        images = torch.where(is_box, images, -1).to(boxes.dtype)
        rois = torch.cat([images[..., None], boxes], -1).flatten(0, 1)
        results = self._bbox_forward(x, rois)
        return predict_boxes(
            self.bbox_head,
            boxes,
            is_box,
            results['cls_score'],
            results['bbox_pred'],
            batch_img_metas,
            rcnn_test_cfg,
            rescale,
        )

    def predict_mask(self, x, batch_img_metas, results_list, rescale=False) -> list:
        found = sum(map(len, results_list))
        if not found or not takes_masks(self.mask_head, self.test_cfg):
            return super().predict_mask(x, batch_img_metas, results_list, rescale)
        rois = bbox2roi([image.bboxes for image in results_list])
        prediction = self._mask_forward(x, rois)['mask_preds']
        paste_predictions(
            self.mask_head, prediction, results_list, batch_img_metas, self.test_cfg, rescale
        )
        return results_list


class _Counts:
    """How many positive samples each image has: copied to the host behind the device's work."""

    def __init__(self, samples: RoISamples, images: int):
        numbers = torch.arange(images, device=samples.images.device)[:, None]
        counts = ((samples.images == numbers) & samples.is_positive).sum(1)
        self.event = None
        if counts.is_cuda:
            self.counts = torch.empty(images, dtype=counts.dtype, pin_memory=True)
            self.counts.copy_(counts, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()
        else:
            self.counts = counts

    def wait(self) -> list[int]:
        if self.event is not None:
            self.event.synchronize()
        return self.counts.tolist()


def _are_packable(gt_instances) -> bool:
    """Tells whether the masks of a batch are all bitmaps or all polygons."""
    return are_of_one_kind([instances.masks for instances in gt_instances])


def _begins_with_convolution(head: nn.Module) -> bool:
    layers = (m for m in head.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    return isinstance(next(layers, None), nn.Conv2d)
