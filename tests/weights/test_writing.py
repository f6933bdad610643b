"""Weights as files."""

import pytest
import torch

from kat_mm.models import KAT
from kat_mm.weights.reading import read_checkpoint
from kat_mm.weights.writing import write_weights


@pytest.mark.parametrize('name', ['kat.safetensors', 'kat.pth'])
def test_what_blocks_share_is_written_under_each_key(name, tmp_path):
    pytest.importorskip('safetensors')
    arch = {'embed_dims': 16, 'num_layers': 2, 'num_heads': 2}
    model = KAT(arch, 64, attention=dict(type='KArAt', rank=2, shared='operator'))
    write_weights(model.state_dict(), tmp_path / name)
    found = read_checkpoint(str(tmp_path / name))
    found = found.get('state_dict', found)
    assert found.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(found[key], value)
