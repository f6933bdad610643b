import pytest
import torch

from kat_mm.graphs import graphed as module
from kat_mm.rational.op import compiled_devices


@pytest.fixture
def without_gpu(monkeypatch):
    """Has tensors of the CPU pass for those of a GPU."""
    monkeypatch.setattr(module, '_can_capture', lambda leaves: all(map(torch.is_tensor, leaves)))
    monkeypatch.setattr(torch.cuda, 'graph_pool_handle', lambda: (0, 1))
    monkeypatch.setattr(module, 'recover', lambda: None)


@pytest.fixture
def gpu():
    """Skips where there is no GPU."""
    if not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')
    assert 'cuda' in compiled_devices(), 'the compiled CUDA kernel is missing: build it first'
