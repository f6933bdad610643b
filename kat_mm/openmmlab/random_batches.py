"""Batches of random images and label maps, to time a segmentor without its data set."""

import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn

from ..errors import ConfigError

PATCHES = 16  # along each side of a label map
IGNORED = 0.05  # share of the pixels


def random_batches(model: nn.Module, batch: int, count: int) -> list[dict]:
    """Makes batches as a data loader gives them, of the size that the model pads images to.

    Label maps are of patches of one class each, with some ignored pixels.

    Args:
        model: a segmentor of mmseg.
        batch: images in a batch.
        count: how many batches.

    Raises:
        ConfigError: for a model that is no segmentor, or does not make all images of one size.
    """
    head = getattr(model, 'decode_head', None)
    size = getattr(model.data_preprocessor, 'size', None)
    if head is None or not size:
        raise ConfigError(
            f'random batches need a segmentor with data_preprocessor.size; {type(model).__name__} '
            'is none'
        )
    generator = torch.Generator().manual_seed(0)

    def sample() -> tuple[torch.Tensor, SegDataSample]:
        image = torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)
        patches = torch.randint(head.num_classes, (1, 1, PATCHES, PATCHES), generator=generator)
        labels = F.interpolate(patches.float(), size)[0].long()
        labels[torch.rand(labels.shape, generator=generator) < IGNORED] = head.ignore_index
        meta = dict(img_shape=size, ori_shape=size, pad_shape=size)
        return image, SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=labels))

    batches = []
    for _ in range(count):
        images, samples = zip(*(sample() for _ in range(batch)), strict=True)
        batches.append(dict(inputs=list(images), data_samples=list(samples)))
    return batches
