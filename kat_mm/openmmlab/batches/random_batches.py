"""Batches of random images with labels, to time a segmentor or detector without its data set."""

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import TRANSFORMS
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from ...errors import ConfigError
from ..configs import nested, type_name

PATCHES = 16  # along each side of a label map
IGNORED = 0.05  # share of the pixels
INSTANCES = 7  # in an image, as COCO has


def random_batches(config: Config, model: nn.Module, count: int, seed: int = 0) -> list[dict]:
    """Makes batches as a data loader gives them, of the size that training resizes images to.

    Label maps are of patches of one class each, with some ignored pixels; instances are ellipses
    with boxes around them. They are packed and pinned as the config's loader does.

    Args:
        config: tells the size of images and batches.
        model: a segmentor of mmseg or a detector of mmdet.
        count: how many batches.
        seed: others make other batches.

    Raises:
        ConfigError: for a model that is neither, or images of no certain size.
    """
    generator = torch.Generator().manual_seed(seed)
    loader = config.train_dataloader
    steps = {type_name(step) for node in nested(loader, 'pipeline') for step in node.pipeline}
    if hasattr(model, 'decode_head'):
        size, make = getattr(model.data_preprocessor, 'size', None), _segmentation_sample
        classes = model.decode_head.num_classes
    else:
        size, make = _resized(loader), _detection_sample
        classes = max((getattr(part, 'num_classes', 0) for part in model.modules()), default=0)
    if not (size and classes):
        raise ConfigError(
            f'random batches need a segmentor with data_preprocessor.size, or a detector whose '
            f'training resizes to one scale; {type(model).__name__} is none'
        )
    pins = loader.get('pin_memory') and torch.cuda.is_available()
    batches = []
    for _ in range(count):
        images, samples = [], []
        for _ in range(loader.batch_size):
            image = torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)
            images.append(image.pin_memory() if pins else image)
            samples.append(make(model, size, classes, steps, generator))
        batches.append(dict(inputs=images, data_samples=samples))
    return batches


def _resized(loader: dict) -> tuple[int, int] | None:
    """Returns the height and width of a wide image after the first transform with one scale."""
    for step in nested(loader, 'scale'):
        scale = step.scale
        if len(scale) == 2 and all(isinstance(side, int) for side in scale):
            return min(scale), max(scale)
    return None


def _segmentation_sample(
    model: nn.Module, size: tuple[int, int], classes: int, steps: set, generator: torch.Generator
):
    from mmseg.structures import SegDataSample

    patches = torch.randint(classes, (1, 1, PATCHES, PATCHES), generator=generator)
    labels = F.interpolate(patches.float(), size)[0].long()
    ignored = torch.rand(labels.shape, generator=generator) < IGNORED
    labels[ignored] = model.decode_head.ignore_index
    if 'PackByteSegInputs' in steps:
        labels = labels.byte()
    return SegDataSample(metainfo=_meta(size), gt_sem_seg=PixelData(data=labels))


def _detection_sample(
    model: nn.Module, size: tuple[int, int], classes: int, steps: set, generator: torch.Generator
):
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks

    sides = torch.tensor([size[1], size[0]])
    extents = sides * torch.rand(INSTANCES, 2, generator=generator).square().clamp(min=0.02)
    corners = (sides - extents) * torch.rand(INSTANCES, 2, generator=generator)
    boxes = torch.cat([corners, corners + extents], 1)
    labels = torch.randint(classes, (INSTANCES,), generator=generator)
    masks = BitmapMasks(_ellipses(boxes, size).numpy(), *size)
    instances = InstanceData(bboxes=HorizontalBoxes(boxes), labels=labels, masks=masks)
    ignored = InstanceData(
        bboxes=HorizontalBoxes(boxes[:0]), labels=labels[:0], masks=BitmapMasks([], *size)
    )
    meta = dict(**_meta(size), batch_input_shape=size, scale_factor=(1.0, 1.0))
    sample = DetDataSample(metainfo=meta, gt_instances=instances, ignored_instances=ignored)
    if 'PackMasks' in steps:
        TRANSFORMS.build(dict(type='PackMasks'))(dict(data_samples=sample))
    return sample


def _ellipses(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Draws the ellipses that boxes hold, uint8 [boxes, *size]."""
    height, width = size
    centres, radii = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    x = (torch.arange(width) + 0.5 - centres[:, :1]) / radii[:, :1]
    y = (torch.arange(height) + 0.5 - centres[:, 1:]) / radii[:, 1:]
    return (x.square()[:, None] + y.square()[:, :, None] <= 1).byte()


def _meta(size: tuple[int, int]) -> dict:
    return dict(img_shape=size, ori_shape=size, pad_shape=size)
