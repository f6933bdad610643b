"""All of the mathematics on each device, with the numbers of the CPU."""

import copy

import pytest
import torch

from kat_mm.analysis.capture import attended
from kat_mm.analysis.landscape import grid_losses, principal_plane
from kat_mm.analysis.parameters import by_kind
from kat_mm.analysis.spectra import BlockSpectra
from kat_mm.analysis.units import layer_with, unit_change, unit_layers
from kat_mm.models import KAT

ARCH = {'embed_dims': 32, 'num_layers': 2, 'num_heads': 2}
OPTIONS = dict(type='KArAt', base='softmax', window_size=3, global_blocks=(1,))


def analyse(model, checkpoints, images, device):
    model = copy.deepcopy(model).to(device).eval()
    images = images.to(device)
    seen = attended(model, lambda: model(images))
    result = {'rows': [one.rows([(1, 2), (4, 4)], image=1).cpu() for one in seen]}
    ranks = []
    for one in seen:
        block = BlockSpectra()
        block.add(one)
        ranks.append(list(block.summary()['effective_rank'].values()))
    result['ranks'] = torch.tensor(ranks)
    result['units'] = [
        unit_change(layer, layer_with(layer, name, checkpoints[0]), 5.0)
        for name, layer in unit_layers(model)
    ]
    result['parameters'] = [values for _, values, _, _ in by_kind(model, model.state_dict())]
    names = [name for name, _ in model.named_parameters()]
    plane = principal_plane(checkpoints, names, device)

    def loss():
        with torch.no_grad():
            return model(images)[0].square().mean().item()

    axes = plane.axes(3)
    result['losses'] = grid_losses(model, plane, axes, loss)
    middle = result['losses'][(axes[0] == 0).nonzero().item(), (axes[1] == 0).nonzero().item()]
    assert loss() == pytest.approx(middle.item(), abs=1e-6)
    return result


def test_numbers_are_those_of_the_cpu(device):
    torch.manual_seed(0)
    model = KAT(ARCH, 80, attention=OPTIONS)
    checkpoints = []
    for _ in range(4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        checkpoints.append({k: v.clone() for k, v in model.state_dict().items()})
    images = torch.randn(2, 3, 80, 80)
    wanted, found = (
        analyse(model, checkpoints, images, where) for where in (torch.device('cpu'), device)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4, equal_nan=True)
