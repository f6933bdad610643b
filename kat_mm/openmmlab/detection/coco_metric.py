"""mmdet's COCO metric, with masks encoded on the GPU that made them. Needs mmdet."""

from collections.abc import Sequence

from mmdet.evaluation import CocoMetric
from mmengine.registry import METRICS
from pycocotools import mask as coco_masks
from torch import Tensor

from ...detection import run_lengths


@METRICS.register_module()
class RunLengthCocoMetric(CocoMetric):
    """Evaluates as mmdet's CocoMetric does, with masks of a GPU encoded there; same arguments.

    mmdet copies each image's masks to the host, at full size, and encodes them one by one, which
    takes longer than to detect them. The results have the same bytes. Masks that are on the host
    are left to mmdet, which is faster there.
    """

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        # In samples of its own: those that are given are for other metrics too.
        super().process(data_batch, [_with_encoded_masks(sample) for sample in data_samples])


def _with_encoded_masks(sample: dict) -> dict:
    detections = sample['pred_instances']
    masks = detections.get('masks')
    if not is_encoded_here(masks):
        return sample
    return {**sample, 'pred_instances': {**detections, 'masks': encode_masks(masks)}}


def is_encoded_here(masks) -> bool:
    """Returns whether masks are faster encoded where they are than by mmdet on the host."""
    return isinstance(masks, Tensor) and masks.is_cuda


def encode_masks(masks: Tensor) -> list[dict]:
    """Encodes masks [N, H, W] as pycocotools does, of which none leaves its device."""
    height, width = masks.shape[1:]
    if not len(masks):
        return []
    runs = [dict(counts=run, size=[height, width]) for run in run_lengths(masks.detach())]
    return coco_masks.frPyObjects(runs, height, width)
