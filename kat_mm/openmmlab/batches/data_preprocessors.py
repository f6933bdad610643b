"""mmengine's data preprocessor of images, for batches and without waiting for the GPU.

Those of mmdet and mmseg are in `detection_data` and `segmentation_data`. All take the arguments of
what they stand for and give its results. With pin_memory=True of a data loader, a thread of its own
pins the images of a batch; without, they are pinned on their way.
"""

from mmengine.model import ImgDataPreprocessor
from mmengine.registry import MODELS

from ...arithmetic import ceil_div
from .batch_copies import stack_images, to_device


class AsynchronousCopies:
    """Copies data to the model's device without waiting, for mmengine's data preprocessors."""

    def cast_data(self, data):
        return to_device(data, self.device)


@MODELS.register_module()
class BatchedImgDataPreprocessor(AsynchronousCopies, ImgDataPreprocessor):
    """mmengine's ImgDataPreprocessor for batches; takes its arguments."""

    def forward(self, data: dict, training: bool = False) -> dict:
        images = data['inputs']
        if not isinstance(images, list | tuple) or any(image.dim() != 3 for image in images):
            return super().forward(data, training)
        data = self.cast_data(data)
        images = data['inputs']
        sides = zip(*(image.shape[1:] for image in images), strict=True)
        divisor = self.pad_size_divisor
        height, width = (ceil_div(max(side), divisor) * divisor for side in sides)
        normalize = (self.mean, self.std) if self._enable_normalize else (None, None)
        data['inputs'] = stack_images(
            images, (height, width), self.pad_value, *normalize, self._channel_conversion
        )
        data.setdefault('data_samples', None)
        return data
