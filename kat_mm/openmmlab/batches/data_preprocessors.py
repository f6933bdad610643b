"""mmengine's data preprocessor of images, for batches and without waiting for the GPU.

Those of mmdet and mmseg are in `detection_data` and `segmentation_data`. All take the arguments of
what they stand for and give its results. With pin_memory=True of a data loader, a thread of its own
pins the images of a batch; without, they are pinned on their way.
"""

from mmengine.model import ImgDataPreprocessor
from mmengine.registry import MODELS

from ...arithmetic import ceil_div
from ...errors import ConfigError
from .batch_copies import stack_images, to_device


class AsynchronousCopies:
    """Copies data to the model's device without waiting, for mmengine's data preprocessors."""

    def cast_data(self, data):
        return to_device(data, self.device)


@MODELS.register_module()
class BatchedImgDataPreprocessor(AsynchronousCopies, ImgDataPreprocessor):
    """mmengine's ImgDataPreprocessor for batches; takes its arguments.

    Raises:
        ConfigError: for a mean of 3 values and images of another number of channels.
    """

    def forward(self, data: dict, training: bool = False) -> dict:
        images = data['inputs']
        if not isinstance(images, list | tuple) or any(image.dim() != 3 for image in images):
            return super().forward(data, training)
        channels = {image.shape[0] for image in images}
        if channels != {3} and (self._channel_conversion or len(channels) > 1):
            return super().forward(data, training)
        if self._enable_normalize and len(self.mean) == 3 and channels != {3}:
            (count,) = channels
            plural = 's' if count > 1 else ''
            raise ConfigError(
                f'{type(self).__name__}: mean has 3 values, images have {count} channel{plural}: '
                'load images in colour, or give a mean of 1 value and a std of 1 value'
            )
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
