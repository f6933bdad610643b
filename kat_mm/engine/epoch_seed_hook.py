"""Random numbers that depend on the epoch alone, so that a resumed run repeats the first."""

import random
from functools import partial

import numpy as np
import torch
from mmengine.dataset import worker_init_fn
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seeds every random number generator from (seed, epoch, rank) as a training epoch begins.

    Checkpoints of mmengine hold no generator states: after `--resume` dropout, samplers and
    augmentations would draw other numbers than the uninterrupted run. With this hook both draw
    the same, as training resumes at the start of an epoch. Loader workers start anew with each
    epoch, since running ones cannot be seeded; for loops by iteration the hook does nothing.
    """

    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner) -> None:
        loop = runner.train_loop
        if not isinstance(loop, EpochBasedTrainLoop):
            return
        # Far apart for neighbouring seeds, epochs and ranks.
        sequence = np.random.SeedSequence([runner.seed, loop.epoch, runner.rank])
        seed = int(sequence.generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

        loader = loop.dataloader
        if loader.num_workers:
            # PyTorch keeps persistent workers in this field; without them it makes new ones.
            loader._iterator = None
            # mmengine adds the number of the worker; stay within numpy's 32 bits.
            loader.worker_init_fn = partial(
                worker_init_fn, num_workers=loader.num_workers, rank=0, seed=seed % 2**31
            )
