"""Decode heads of mmseg whose loss never makes the full-size logits, by one word of their config.

`decode_head=dict(type='FusedUPerHead', ...)` is UPerHead in all but its loss, which resizes the
logits, and takes cross entropy and accuracy of them, in one op. So it is for every head of mmseg
that leaves its loss to BaseDecodeHead; `STOCK` lists those that do not.
"""

import torch
from mmengine.registry import MODELS
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import CrossEntropyLoss
from mmseg.models.necks import MultiLevelNeck
from mmseg.registry import MODELS as MMSEG_MODELS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ...errors import ConfigError
from ...segmentation import adaptive_avg_pool2d, upsample_bilinear, upsample_cross_entropy
from ..channels_last import channels_last, init_in_order, put_channels_last
from .losses import WeightedCrossEntropyLoss

EPS = torch.finfo(torch.float32).eps  # what mmseg adds to what it divides by


class _OwnResizing(TorchFunctionMode):
    """Has kat_mm resize and pool on a GPU: reproducibly, and in the dtype of the input."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.interpolate:
            return self._interpolate(*args, **kwargs)
        if func is F.adaptive_avg_pool2d:
            return self._adaptive_avg_pool2d(*args, **kwargs)
        return func(*args, **kwargs)

    @staticmethod
    def _adaptive_avg_pool2d(input, output_size):
        if not input.is_cuda or input.dim() != 4:
            return F.adaptive_avg_pool2d(input, output_size)
        size = [output_size] * 2 if isinstance(output_size, int) else output_size
        size = (side or old for side, old in zip(size, input.shape[2:], strict=True))
        return adaptive_avg_pool2d(input, tuple(size))

    @staticmethod
    def _interpolate(
        input, size=None, scale_factor=None, mode='nearest', align_corners=None, *rest, **options
    ):
        is_plain = mode == 'bilinear' and input.is_cuda and not any([*rest, *options.values()])
        if is_plain and size is None:
            size = [side * scale_factor for side in input.shape[2:]]
            is_plain = all(side == int(side) for side in size)  # which give the factor as well
        if is_plain:
            height, width = map(int, size)
            return upsample_bilinear(input, (height, width), bool(align_corners))
        return F.interpolate(
            input,
            size if scale_factor is None else None,
            scale_factor,
            mode,
            align_corners,
            *rest,
            **options,
        )


@MODELS.register_module()
class FusedMultiLevelNeck(MultiLevelNeck):
    """mmseg's MultiLevelNeck, which resizes by `kat_mm.segmentation.upsample_bilinear` on a GPU."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        put_channels_last(self)

    def init_weights(self) -> None:
        init_in_order(super().init_weights, self)

    def forward(self, inputs) -> tuple[Tensor, ...]:
        with _OwnResizing():
            return super().forward(channels_last(inputs))


class FusedLoss:
    """The loss of BaseDecodeHead in one op, for heads that inherit it; takes their arguments.

    Values and gradients are those of mmseg's CrossEntropyLoss, softmax with mean reduction, several
    of them included, but that pixels which are ignored weigh nothing where classes have weights:
    mmseg looks up the weight of class 255. The logits are resized in fp32, mmseg's in their own
    dtype.

    Raises:
        ConfigError: for other losses, and for a sampler.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        put_channels_last(self)
        name = type(self).__name__
        if self.sampler is not None:
            raise ConfigError(
                f'{name}: its loss takes no sampler; use {name.removeprefix("Fused")}, or leave '
                'sampler out'
            )
        for i, loss in enumerate(self._losses()):
            is_known = type(loss) in (CrossEntropyLoss, WeightedCrossEntropyLoss)
            is_softmax = is_known and not (loss.use_sigmoid or loss.use_mask)
            if not is_softmax or loss.reduction != 'mean':
                raise ConfigError(
                    f'{name}: loss_decode must be CrossEntropyLoss, of a softmax and with '
                    f"reduction='mean', got {loss}; use {name.removeprefix('Fused')}"
                )
            weight = loss.class_weight
            if weight is not None:
                weight = torch.tensor(weight, dtype=torch.float32)
            self.register_buffer(f'class_weight_{i}', weight, persistent=False)

    def init_weights(self) -> None:
        init_in_order(super().init_weights, self)

    def forward(self, inputs) -> Tensor:
        with _OwnResizing():
            return super().forward(channels_last(inputs))

    def _losses(self) -> list[nn.Module]:
        losses = self.loss_decode
        return list(losses) if isinstance(losses, nn.ModuleList) else [losses]

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
        labels = self._stack_batch_gt(batch_data_samples).squeeze(1)
        losses = {}
        for i, loss in enumerate(self._losses()):
            weight = getattr(self, f'class_weight_{i}')
            total, statistics = upsample_cross_entropy(
                seg_logits, labels, weight, self.ignore_index, self.align_corners
            )
            if weight is not None:
                count = statistics.weight
            else:
                count = statistics.pixels if loss.avg_non_ignore else labels.numel()
            value = loss.loss_weight * (total / (count + EPS)).to(total.dtype)
            losses[loss.loss_name] = losses.get(loss.loss_name, 0) + value
        correct = 100 * (statistics.correct + EPS) / (statistics.pixels + EPS)
        losses['acc_seg'] = correct.float()[None]
        return losses


def _is_fusible(cls: type) -> bool:
    return issubclass(cls, BaseDecodeHead) and cls.loss_by_feat is BaseDecodeHead.loss_by_feat


_HEADS = [cls for cls in MMSEG_MODELS.module_dict.values() if isinstance(cls, type)]
STOCK = sorted(
    cls.__name__ for cls in _HEADS if issubclass(cls, BaseDecodeHead) and not _is_fusible(cls)
)
for _head in _HEADS:
    if _is_fusible(_head):
        _fused = type(
            f'Fused{_head.__name__}',
            (FusedLoss, _head),
            {'__doc__': FusedLoss.__doc__, '__module__': __name__},
        )
        MODELS.register_module(module=_fused)
