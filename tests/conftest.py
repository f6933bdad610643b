import pytest
import torch

import kat_mm.rational  # noqa: F401
from kat_mm.rational.op import compiled_devices

# A GPU's convolutions of fp32 are else of 11 bits, and differ with the layout of memory.
torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(params=['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
def device(request):
    """Each device type; a GPU that is there must have its compiled kernel."""
    if request.param == 'cuda':
        if not torch.cuda.is_available():
            pytest.skip('needs a CUDA device')
        assert 'cuda' in compiled_devices(), 'the compiled CUDA kernel is missing: build it first'
    return request.param


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
