"""Test time augmentation for detection with masks. Needs mmdet."""

from mmcv.ops import batched_nms
from mmdet.models import DetTTAModel
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_flip
from mmengine.registry import MODELS
from mmengine.structures import InstanceData

MASK_AXES = {'horizontal': (-1,), 'vertical': (-2,), 'diagonal': (-2, -1)}


@MODELS.register_module()
class InstanceTTAModel(DetTTAModel):
    """Merges the predictions for several views of an image, with masks where there are any.

    Takes the arguments of mmdet's DetTTAModel, which refuses masks. The boxes of all views are
    mapped back to the image and go through NMS together; each box that stays keeps its mask.
    """

    def _merge_single_sample(self, data_samples: list[DetDataSample]) -> DetDataSample:
        merged = InstanceData.cat([_unflipped(sample) for sample in data_samples])
        if len(merged):
            boxes, kept = batched_nms(merged.bboxes, merged.scores, merged.labels, self.tta_cfg.nms)
            merged = merged[kept[: self.tta_cfg.max_per_img]]
            merged.scores = boxes[: self.tta_cfg.max_per_img, -1]  # soft NMS changes them
        data_samples[0].pred_instances = merged
        return data_samples[0]


def _unflipped(sample: DetDataSample) -> InstanceData:
    instances, view = sample.pred_instances, sample.metainfo
    if view.get('flip'):
        direction = view['flip_direction']
        instances.bboxes = bbox_flip(instances.bboxes, view['ori_shape'], direction)
        if 'masks' in instances:
            instances.masks = instances.masks.flip(MASK_AXES[direction])
    return instances
