"""Batches of few sizes for detectors, so that each size can have its CUDA graph."""

import logging
from collections.abc import Sequence

import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmengine.logging import print_log
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from torch import Tensor, nn

from ...checks import check_ints
from ...errors import ConfigError

# Of images whose sides are at most 800 and 1333: 4:3, the most common in COCO, both ways round; all
# wider ones, both ways round; and batches that mix the two.
BUCKETS = ((800, 1088), (1088, 800), (800, 1344), (1344, 800), (1344, 1344))


@MODELS.register_module()
class PadToBucket(nn.Module):
    """Pads a batch at the right and bottom to the smallest of a few sizes that holds it.

    Masks and semantic maps that have the batch's size are padded too. A batch that no size holds
    stays as it is, which is told once. Use it as
    `data_preprocessor=dict(batch_augments=[dict(type='PadToBucket')])`, which is for training.

    Args:
        buckets: sizes (height, width) in pixels; by default for images of 800 x 1333.
        img_pad_value, mask_pad_value, seg_pad_value: what is put there.

    Raises:
        ConfigError: for sizes that are none.
    """

    def __init__(
        self,
        buckets: Sequence[Sequence[int]] = BUCKETS,
        img_pad_value: float = 0,
        mask_pad_value: int = 0,
        seg_pad_value: int = 255,
    ):
        super().__init__()
        sizes = [check_ints(f'buckets[{i}]', size) for i, size in enumerate(buckets)]
        if not sizes or any(len(size) != 2 for size in sizes):
            raise ConfigError(f'buckets={buckets!r} must be sizes (height, width)')
        self.buckets = sorted(sizes, key=lambda size: size[0] * size[1])
        self.img_pad_value = img_pad_value
        self.mask_pad_value, self.seg_pad_value = mask_pad_value, seg_pad_value
        self._is_told = False

    def forward(
        self, inputs: Tensor, data_samples: Sequence[DetDataSample] | None = None
    ) -> tuple[Tensor, Sequence[DetDataSample] | None]:
        old = tuple(inputs.shape[-2:])
        size = next((s for s in self.buckets if old[0] <= s[0] and old[1] <= s[1]), old)
        if size == old:
            if size not in self.buckets and not self._is_told:
                self._is_told = True
                text = f'PadToBucket: none of the buckets {self.buckets} holds a batch of {old}'
                print_log(text, 'current', logging.WARNING)
            return inputs, data_samples
        for sample in data_samples or ():
            sample.set_metainfo({'batch_input_shape': size, 'pad_shape': size})
            self._pad_truth(sample, old, size)
        return _pad(inputs, size, self.img_pad_value), data_samples

    def _pad_truth(self, sample: DetDataSample, old: tuple[int, int], size: tuple[int, int]):
        masks = getattr(getattr(sample, 'gt_instances', None), 'masks', None)
        if hasattr(masks, 'pad') and (masks.height, masks.width) == old:
            sample.gt_instances.masks = masks.pad(size, pad_val=self.mask_pad_value)
        labels = getattr(getattr(sample, 'gt_sem_seg', None), 'sem_seg', None)
        if labels is not None and tuple(labels.shape[-2:]) == old:
            sample.gt_sem_seg = PixelData(sem_seg=_pad(labels, size, self.seg_pad_value))


def _pad(x: Tensor, size: tuple[int, int], value: float) -> Tensor:
    return F.pad(x, (0, size[1] - x.shape[-1], 0, size[0] - x.shape[-2]), value=value)
