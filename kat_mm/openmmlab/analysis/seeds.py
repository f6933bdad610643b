"""Random numbers that start from a seed for a while."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Lets the generators of Python, numpy and torch start from a seed, then go on as before.

    As mmengine seeds them for a run.

    Args:
        seed: of all of them.
        device: whose generator counts, beside that of the CPU.
    """
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng([device] if device.type == 'cuda' else []):
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
