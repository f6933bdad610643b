"""mmdet's instance masks, packed in a loader's workers. Needs mmdet.

`dict(type='PackMasks')` stands behind LoadAnnotations, or at the end of a pipeline.
"""

from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from .packed_masks import PackedInstanceMasks


@TRANSFORMS.register_module()
class PackMasks(BaseTransform):
    """Packs the masks of a sample.

    Behind LoadAnnotations, Resize, RandomFlip and Pad then work on less. All other transforms give
    what they give without it, by unpacking the masks: RandomErasing and CopyPaste, which write to
    them, RandomCrop, MinIoURandomCrop, Expand, Rotate, Shear and Translate belong before this one,
    as it saves nothing before them. Behind PackDetInputs it suits every pipeline.
    """

    def transform(self, results: dict) -> dict:
        if 'gt_masks' in results:
            results['gt_masks'] = PackedInstanceMasks.pack(results['gt_masks'])
        sample = results.get('data_samples', {})
        for name in ('gt_instances', 'ignored_instances'):
            instances = sample.get(name)
            if instances is not None and 'masks' in instances:
                instances.masks = PackedInstanceMasks.pack(instances.masks)
        return results
