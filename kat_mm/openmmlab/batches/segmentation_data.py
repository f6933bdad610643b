"""mmseg's data preprocessor for batches, and label maps of bytes on their way to it. Needs mmseg.

`data_preprocessor=dict(type='BatchedSegDataPreProcessor', ...)` takes the arguments of mmseg's
SegDataPreProcessor and gives its results. Images are normalised and padded on the GPU. Label maps
come by one asynchronous copy, and become int64 there: `PackByteSegInputs` in the place of
PackSegInputs sends an eighth of the bytes.
"""

import numpy as np
import torch
from mmengine.registry import MODELS, TRANSFORMS
from mmseg.datasets.transforms import PackSegInputs
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.utils import stack_batch

from .batch_copies import stack_images
from .data_preprocessors import AsynchronousCopies


@TRANSFORMS.register_module()
class PackByteSegInputs(PackSegInputs):
    """mmseg's PackSegInputs, which leaves label maps of bytes as they are; takes its arguments.

    A model then needs `BatchedSegDataPreProcessor`, as losses take int64.
    """

    def transform(self, results: dict) -> dict:
        labels = results.get('gt_seg_map')
        if labels is None or labels.dtype != np.uint8 or labels.ndim != 2:
            return super().transform(results)
        # One pixel stands for the map that mmseg would widen.
        packed = super().transform({**results, 'gt_seg_map': labels[:1, :1]})
        label_map = packed['data_samples'].gt_sem_seg
        del label_map.data
        label_map.data = torch.from_numpy(np.ascontiguousarray(labels))[None]
        return packed


@MODELS.register_module()
class BatchedSegDataPreProcessor(AsynchronousCopies, SegDataPreProcessor):
    """mmseg's SegDataPreProcessor for batches; takes its arguments."""

    def forward(self, data: dict, training: bool = False) -> dict:
        if not training:
            return super().forward(data, training)
        data = self.cast_data(data)
        images, samples = data['inputs'], data.get('data_samples')
        if samples is None:
            raise ValueError('training takes data_samples beside inputs, got none')
        if self.seg_pad_val not in range(256):  # which bytes cannot hold
            _widen_labels(samples)
        # mmseg pads the label maps. The images, without their channels here, are padded below.
        empty, samples = stack_batch(
            inputs=[image[:0] for image in images],
            data_samples=samples,
            size=self.size,
            size_divisor=self.size_divisor,
            pad_val=self.pad_val,
            seg_pad_val=self.seg_pad_val,
        )
        normalize = (self.mean, self.std) if self._enable_normalize else (None, None)
        is_flipped = self.channel_conversion and images[0].shape[0] == 3
        size = tuple(empty.shape[2:])
        inputs = stack_images(images, size, self.pad_val, *normalize, is_flipped)
        _widen_labels(samples)
        if self.batch_augments is not None:
            inputs, samples = self.batch_augments(inputs, samples)
        return dict(inputs=inputs, data_samples=samples)


def _widen_labels(samples: list) -> None:
    """Makes label maps of bytes int64, which losses take: views of one tensor where sizes agree."""
    maps = [sample.gt_sem_seg for sample in samples if 'gt_sem_seg' in sample]
    narrow = [labels for labels in maps if labels.data.dtype == torch.uint8]
    if not narrow:
        return
    widened = [labels.data for labels in narrow]
    if len({labels.shape for labels in widened}) == 1:
        widened = torch.stack(widened).long().unbind()
    for labels, data in zip(narrow, widened, strict=True):
        labels.data = data.long()
