from copy import deepcopy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

CONFIGS = Path(__file__).parents[2] / 'configs'


@pytest.fixture(scope='package', autouse=True)
def one_thread():
    """The initialisation works on small matrices, for which threads cost more than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='session')
def load():
    configs = {}

    def load(name):
        if name not in configs:
            configs[name] = Config.fromfile(CONFIGS / name)
        return deepcopy(configs[name])  # building a model takes some settings out

    return load
