"""The training loss of a model on batches that stay the same."""

import copy
from contextlib import AbstractContextManager
from itertools import islice

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn

from ...analysis.landscape import fresh_statistics
from ...errors import ConfigError
from .seeds import seeded


class BatchLosses:
    """Computes the mean training loss of a model in evaluation mode over some batches.

    Nothing is left to chance, so that losses of other weights can be compared: batches are loaded
    and augmented once, dropout and drop path are off, and what heads draw, such as the samples of
    RoIs, is drawn from one seed. Batch norms take the statistics of these batches with the weights
    of the moment; see `fresh_statistics`. Arithmetic is in the dtype of the weights, without
    autocast.

    Args:
        model: a model of mmengine with a data preprocessor and mode='loss'.
        batches: as a data loader gives them.
    """

    SEED = 0

    def __init__(self, model: nn.Module, batches: list[dict]):
        self.model = model.eval()
        self.device = next(model.parameters()).device
        with self._same_draws():
            self.batches = [model.data_preprocessor(batch, True) for batch in batches]

    def __call__(self) -> float:
        """Returns the loss of the model as it is."""
        with fresh_statistics(self.model, self._run):
            return self._run()

    def with_own_statistics(self) -> float:
        """Returns the loss with the statistics that the model's batch norms have."""
        return self._run()

    @torch.no_grad()
    def _run(self) -> float:
        total = 0.0
        for batch in self.batches:
            with self._same_draws():
                samples = copy.deepcopy(batch['data_samples'])  # heads may write into them
                losses = self.model(batch['inputs'], samples, mode='loss')
                total += self.model.parse_losses(losses)[0].double().item()
        return total / len(self.batches)

    def _same_draws(self) -> AbstractContextManager[None]:
        return seeded(self.SEED, self.device)


def training_batches(config: Config, count: int) -> list[dict]:
    """Loads the first batches of a config's training data, the same ones each time.

    Raises:
        ConfigError: for a config without training data, or with less than one batch.
    """
    settings = copy.deepcopy(config.get('train_dataloader'))
    if not settings:
        raise ConfigError(f'config {config.filename} has no train_dataloader to load batches with')
    # Workers would draw their own augmentations; a few batches need none.
    settings.num_workers, settings.persistent_workers = 0, False
    settings.pop('prefetch_factor', None)
    scope = DefaultScope.overwrite_default_scope(config.get('default_scope'))
    with scope, seeded(BatchLosses.SEED, torch.device('cpu')):
        loader = Runner.build_dataloader(settings, seed=BatchLosses.SEED)
        batches = list(islice(loader, count))
    if not batches:
        raise ConfigError(f'train_dataloader of config {config.filename} gives no batch')
    return batches
