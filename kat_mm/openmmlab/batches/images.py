"""Images of a config's training data, as its model sees them in a test."""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn

from ...errors import ConfigError, DataError
from ..configs import nested


def training_images(
    config: Config,
    model: nn.Module,
    batches: int,
    batch_size: int,
    size: Sequence[int] | None = None,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Yields batches [B, 3, H, W] of training images through the test pipeline, shuffled.

    The model's data preprocessor normalises and pads them. With a size, (H, W), they are then
    resized to it.

    Raises:
        ConfigError: for a config without data to train or test on.
        DataError: for a data set with too few images.
    """
    loaders = [config.get(f'{split}_dataloader') for split in ('train', 'test')]
    if None in loaders:
        raise ConfigError(
            'the config has no train_dataloader and test_dataloader to take images of'
        )
    train, test = ([*nested(loader, 'pipeline')] for loader in loaders)
    dataset = train[0].copy()
    dataset['pipeline'] = test[0]['pipeline']
    loader = dict(
        batch_size=batch_size,
        num_workers=0,
        drop_last=True,
        sampler=dict(type='DefaultSampler', shuffle=True),
        dataset=dataset,
    )
    init_default_scope(config.get('default_scope') or 'mmengine')
    loader = Runner.build_dataloader(loader, seed=seed)
    if len(loader) < batches:
        raise DataError(
            f'the training data has {len(loader.dataset)} images, less than {batches} batches of '
            f'{batch_size}: ask for fewer'
        )
    for data in islice(loader, batches):
        with torch.no_grad():
            images = model.data_preprocessor(data, False)['inputs']
        yield images if size is None else F.interpolate(images, tuple(size), mode='bilinear')
