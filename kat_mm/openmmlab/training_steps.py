"""Steps of a config's training without a run around them, to be measured."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..errors import NonFiniteLossError
from . import config_checks, configs


@dataclass
class TrainingSteps:
    """Makes steps of training, forward, backward and optimizer.

    Attributes:
        model: in training mode, in the wrapper of distributed training where there is one.
        optimizer: mmengine's wrapper of it.
        batch: images in a batch.
        make_loader: makes the config's data loader.
        loaded: batches that were loaded before.
        loss: that of the last step.
    """

    model: nn.Module
    optimizer: OptimWrapper
    batch: int
    make_loader: Callable[[], DataLoader]
    loaded: list[dict]
    loss: Tensor | None = field(default=None, init=False)

    def __post_init__(self):
        self._turns = cycle(self.loaded)

    def step(self) -> None:
        """Makes a step on the loaded batches, which take turns."""
        self.step_on(next(self._turns))

    def step_on(self, batch: dict) -> None:
        """Makes a step on a batch."""
        self.loss = self.model.train_step(batch, self.optimizer)['loss'].detach()

    def check_loss(self) -> None:
        """Checks the last step, for which it waits.

        Raises:
            NonFiniteLossError: if its loss isn't finite.
        """
        if not torch.isfinite(self.loss):
            raise NonFiniteLossError(f'the loss became {self.loss.item()}')


def build_training(
    config: Config,
    name: str,
    folder: str,
    *,
    batches: int,
    random: bool,
    batch: int | None = None,
    seed: int = 0,
) -> TrainingSteps:
    """Builds what a config trains, with its weights initialised.

    Args:
        config: read by `read_config`; it is changed.
        name: of the experiment, which no other in this process may have.
        folder: the one in work_dirs that it logs to.
        batches: how many to load before; with none, workers don't start.
        random: random images and labels instead of the data set's.
        batch: images in a batch, by default the config's.
        seed: of the random batches.

    Raises:
        ConfigError, DataError: for data or weights that are not there, and as `random_batches`.
    """
    if batch:
        config.train_dataloader.batch_size = batch
    config.work_dir = str(Path('work_dirs') / folder)
    config.log_level = 'WARNING'
    config.experiment_name = name
    configs.use_full_precision_on_cpu(config)
    if not random:
        config_checks.check_data(config, 'train')
    config_checks.check_pretrained(config)
    runner = Runner.from_cfg(config)
    runner._init_model_weights()
    optimizer = runner.build_optim_wrapper(config.optim_wrapper)
    model = runner.model.train()
    make_loader = partial(runner.build_dataloader, config.train_dataloader)
    if random:
        from .batches.random_batches import random_batches

        inner = model.module if is_model_wrapper(model) else model
        loaded = random_batches(config, inner, batches, seed)
    else:
        loaded = list(islice(make_loader(), batches)) if batches else []
    return TrainingSteps(model, optimizer, config.train_dataloader.batch_size, make_loader, loaded)
