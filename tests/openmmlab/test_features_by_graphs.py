"""Backbone and neck of a detector by CUDA graphs, for batches padded to few sizes, on a GPU."""

import mmdet.models  # noqa: F401, which PadToBucket follows
import pytest
import torch
from torch import nn

from kat_mm.graphs import graph_parts
from kat_mm.models import KAT, SimplePyramid
from kat_mm.openmmlab.batches.pad_to_bucket import PadToBucket
from kat_mm.rational.op import compiled_devices

pytestmark = pytest.mark.gpu
SIZES = [(96, 130), (90, 140), (130, 96), (96, 144), (140, 90), (80, 100)]


class Features(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = KAT(
            dict(embed_dims=64, num_layers=4, num_heads=2),
            img_size=64,
            patch=8,
            attention=dict(type='softmax', window_size=7),
            drop_path_rate=0.3,
        )
        self.neck = SimplePyramid(64, 32, 8, (4, 8, 16))

    def extract_feat(self, images):
        return self.neck(self.backbone(images))


def train(graphs):
    torch.manual_seed(0)
    model = Features().cuda()
    parts = graph_parts(model, ['extract_feat'], warmup=1) if graphs else None
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    pad = PadToBucket([(96, 144), (144, 96)])
    for step in range(12):
        torch.manual_seed(step)
        images, _ = pad(torch.randn(2, 3, *SIZES[step % len(SIZES)], device='cuda'))
        with torch.autocast('cuda', torch.bfloat16):
            maps = model.extract_feat(images)
        sum(y.float().square().mean() for y in maps).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict(), parts


def test_weights_are_those_of_a_run_without_graphs(monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')
    assert 'cuda' in compiled_devices(), 'the compiled CUDA kernel is missing: build it first'
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    torch.use_deterministic_algorithms(True)
    try:
        (expected, _), (found, parts) = train(False), train(True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(parts.parts[0].captures) == 2
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
