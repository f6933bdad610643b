"""Images as a model takes them, and as pictures."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope
from torch import Tensor, nn

from ...analysis.capture import Attended, attended
from ...attention import Attention
from ...errors import ConfigError, DataError
from ..configs import nested, type_name


class Image(NamedTuple):
    """An image and what each attention of a model took of it.

    Attributes:
        name: of its file.
        picture: [height, width, 3], uint8, RGB, as large as the model takes it without padding.
        size: (height, width) with padding, in pixels.
        seen: one for each call of an attention, in their order.
    """

    name: str
    picture: np.ndarray
    size: tuple[int, int]
    seen: list[Attended]

    def token_size(self, grid: tuple[int, int]) -> int:
        """Returns the side in pixels of what a token of a map stands for."""
        return max(math.ceil(n / m) for n, m in zip(self.size, grid, strict=True))


def validation_images(config: Config, which: str, count: int) -> list[dict]:
    """Loads images as the test pipeline of a config gives them.

    Args:
        config: has a test_dataloader.
        which: the number of the first image in its data set, or the path of an image file.
        count: how many images in a row; a file is one.

    Raises:
        DataError: for a path or a number that is not there.
        ConfigError: for a config without test data.
    """
    settings = (config.get('test_dataloader') or {}).get('dataset')
    if not settings:
        raise ConfigError(f'config {config.filename} has no test_dataloader.dataset')
    with DefaultScope.overwrite_default_scope(config.get('default_scope')):
        if which.lstrip('-').isdecimal():
            dataset = DATASETS.build(settings)
            first = int(which)
            if not 0 <= first < len(dataset):
                raise DataError(
                    f'--image {which}: the test data has {len(dataset)} images, 0 to '
                    f'{len(dataset) - 1}'
                )
            return [dataset[i] for i in range(first, min(first + count, len(dataset)))]
        if not Path(which).is_file():
            raise DataError(f'--image {which}: must be an image file or a number')
        # Without annotations, which nothing that is drawn here needs.
        steps = next(nested(settings, 'pipeline')).pipeline
        steps = [
            step
            for step in steps
            if not type_name(step).startswith('Load') or 'Image' in type_name(step)
        ]
        pipeline = Compose([TRANSFORMS.build(step) for step in steps])
        return [pipeline(dict(img_path=which, img_id=0))]


def look_at(model: nn.Module, sample: dict) -> Image:
    """Runs the backbone of a model on an image.

    Raises:
        ConfigError: for a model without a backbone, without an attention of this project, or with
            one that tells no matrices.
    """
    backbone = getattr(model, 'backbone', None)
    if backbone is None:
        raise ConfigError(f'{type(model).__name__} has no backbone to look at')
    batch = dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']])
    with torch.no_grad():
        inputs: Tensor = model.data_preprocessor(batch, False)['inputs']
    seen = attended(model, lambda: backbone(inputs))
    if not seen:
        raise ConfigError(
            f'backbone {type(backbone).__name__} has no attention of kat_mm: there is no attention '
            'to look at'
        )
    for kind in {type(one.attention) for one in seen}:
        if kind.matrices is Attention.matrices:
            raise ConfigError(
                f'attention {kind.__name__} cannot be looked at: give it a method matrices(x, grid)'
            )
    picture = sample['inputs'].permute(1, 2, 0).flip(2).contiguous()  # loaded as BGR
    name = Path(getattr(sample['data_samples'], 'img_path', '') or 'image').name
    return Image(name, picture.clamp(0, 255).byte().cpu().numpy(), tuple(inputs.shape[-2:]), seen)
