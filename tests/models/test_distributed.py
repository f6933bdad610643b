"""Training under DistributedDataParallel where a neck or head leaves out maps of the backbone."""

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from kat_mm.models import KAT

ARCH = {'embed_dims': 16, 'num_layers': 1, 'num_heads': 2}


class LeavesOutTheFirstLevel(nn.Module):
    """Uses two of four levels, the first of them in place, as a neck may."""

    def __init__(self):
        super().__init__()
        self.backbone = KAT(ARCH, img_size=32, pyramid=(8, 8, 8, 8))

    def forward(self, images):
        _, x, _, y = self.backbone(images)
        return torch.relu_(x).mean() + y.mean()


@pytest.fixture
def one_process(tmp_path):
    distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


def gradients(model, images):
    for _ in range(2):  # an unused parameter shows at the second forward
        model.zero_grad()
        model(images).backward()
    return {name.removeprefix('module.'): p.grad for name, p in model.named_parameters()}


def test_unused_levels_take_part_in_the_backward_pass(tmp_path, request):
    model = LeavesOutTheFirstLevel()
    images = torch.randn(2, 3, 32, 32)
    expected = gradients(model, images)
    request.getfixturevalue('one_process')
    found = gradients(DistributedDataParallel(model), images)
    unused = [name for name, grad in expected.items() if grad is None]
    assert {name.split('.')[3] for name in unused} == {'stride4', 'stride16'}
    for name, grad in found.items():
        if name in unused:
            assert not grad.any(), name
        else:
            torch.testing.assert_close(grad, expected[name], msg=name)
