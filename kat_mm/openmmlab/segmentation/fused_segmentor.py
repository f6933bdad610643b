"""A segmentor that predicts labels without full-size logits, and runs by CUDA graphs as a whole."""

from collections.abc import Sequence

import torch
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from ...segmentation import upsample_argmax
from .fused_heads import FusedLoss


@MODELS.register_module()
class FusedEncoderDecoder(EncoderDecoder):
    """mmseg's EncoderDecoder, which resizes logits and takes their largest class in one op.

    Its predictions are `pred_sem_seg` alone: the labels are those of EncoderDecoder, but where two
    classes are equal up to rounding. `seg_logits`, which test time augmentation averages, come
    with `test_cfg=dict(keep_logits=True)`; then, and wherever predictions are more than one
    resizing of whole images (windows, flips, a single channel with a threshold, a head of its own
    way to predict), it does what EncoderDecoder does, and gives them too.

    Takes the arguments of EncoderDecoder.
    """

    @property
    def graph_parts(self) -> tuple[str, ...]:
        """What CUDA graphs take: with fused heads, all from images to losses, or to logits."""
        heads = [self.decode_head]
        if self.with_auxiliary_head:
            several = isinstance(self.auxiliary_head, nn.ModuleList)
            heads += self.auxiliary_head if several else [self.auxiliary_head]
        plain = all(isinstance(h, FusedLoss) and _is_stock(h, 'loss') for h in heads)
        return ('compute_losses', '_forward') if plain else ()

    def loss(self, inputs: Tensor, data_samples: Sequence[SegDataSample]) -> dict[str, Tensor]:
        if not self.graph_parts:
            return super().loss(inputs, data_samples)
        labels = torch.stack([sample.gt_sem_seg.data for sample in data_samples])
        return self.compute_losses(inputs, labels)

    def compute_losses(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Computes what `loss` does, of images [B, 3, H, W] and labels [B, 1, H, W]."""
        samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]
        return super().loss(inputs, samples)

    def predict(
        self, inputs: Tensor, data_samples: Sequence[SegDataSample] | None = None
    ) -> Sequence[SegDataSample]:
        metas = [sample.metainfo for sample in data_samples or ()]
        if not self._predicts_labels_alone(metas):
            return super().predict(inputs, data_samples)
        logits = self._forward(inputs)
        size = _padded_size(metas[0]) if metas else inputs.shape[2:]
        if data_samples is None:
            data_samples = [SegDataSample() for _ in inputs]
        for i, sample in enumerate(data_samples):
            labels = upsample_argmax(
                logits[i : i + 1],
                tuple(metas[i]['ori_shape'][:2] if metas else size),
                self.align_corners,
                tuple(size),
                _window(size, metas[i]) if metas else None,
            )
            sample.set_data({'pred_sem_seg': PixelData(data=labels)})
        return data_samples

    def _predicts_labels_alone(self, metas: Sequence[dict]) -> bool:
        settings = self.test_cfg or {}
        return (
            not settings.get('keep_logits', False)
            and settings.get('mode', 'whole') == 'whole'
            and self.out_channels > 1
            and all(_is_stock(self.decode_head, name) for name in ('predict', 'predict_by_feat'))
            and not any(meta.get('flip') for meta in metas)
        )


def _is_stock(head: BaseDecodeHead, method: str) -> bool:
    return getattr(type(head), method) is getattr(BaseDecodeHead, method)


def _padded_size(meta: dict) -> Sequence[int]:
    """Returns the size that BaseDecodeHead.predict_by_feat resizes the logits of a batch to."""
    if isinstance(meta['img_shape'], torch.Size) or 'pad_shape' not in meta:
        return meta['img_shape'][:2]
    return meta['pad_shape'][:2]


def _window(size: Sequence[int], meta: dict) -> tuple[int, int, int, int]:
    """Returns (top, left, height, width) of an image in what was padded to a size."""
    padding = meta.get('img_padding_size', meta.get('padding_size', (0, 0, 0, 0)))
    left, right, top, bottom = padding
    return top, left, size[0] - top - bottom, size[1] - left - right
