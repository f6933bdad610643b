"""mmdet's data preprocessor for batches. Needs mmdet.

`data_preprocessor=dict(type='BatchedDetDataPreprocessor', ...)` takes the arguments of mmdet's
DetDataPreprocessor and gives its results. Images are normalised and padded on the GPU, boxes and
labels come by one asynchronous copy, and so do the masks that `PackMasks` packed.
"""

from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmengine.registry import MODELS

from .data_preprocessors import BatchedImgDataPreprocessor
from .packed_masks import PackedInstanceMasks, are_of_one_kind, on_device


# mmdet's class leaves the images to the next one, which is the one in between.
@MODELS.register_module()
class BatchedDetDataPreprocessor(DetDataPreprocessor, BatchedImgDataPreprocessor):
    """mmdet's DetDataPreprocessor for batches; takes its arguments."""

    def forward(self, data: dict, training: bool = False) -> dict:
        data = super().forward(data, training)
        if training and data['data_samples']:
            instances = [sample.get('gt_instances', {}) for sample in data['data_samples']]
            masks = [part.get('masks') for part in instances]
            is_packed = all(isinstance(part, PackedInstanceMasks) for part in masks)
            if is_packed and are_of_one_kind(masks):
                for part, copied in zip(instances, on_device(masks, self.device), strict=True):
                    part.masks = copied
        return data
