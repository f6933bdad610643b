"""Small KATs with drawn weights, and the layouts that published ones are saved in."""

import re
from pathlib import Path

import timm
import torch
from mmengine.model import BaseModel
from torch import nn

from kat_mm.openmmlab import KAT

ARCH = {'embed_dims': 48, 'num_layers': 2, 'num_heads': 2}
NAME, SIZES = 'kat_tiny_patch16_224', dict(embed_dim=48, depth=2, num_heads=2, img_size=64)


def published(**kwargs):
    """A classifier with weights of its own."""
    torch.manual_seed(1)
    model = timm.create_model(NAME, **{**SIZES, 'num_classes': 5, **kwargs}).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def randomise(model):
    """Moves all parameters, so that nothing passes by being zero or the identity."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def features(model, x):
    """The map of a classifier's features, as the backbone returns it."""
    return model.forward_features(x)[:, 1:].mT.unflatten(2, (4, 4))


class Detector(BaseModel):
    """A model with a KAT of these sizes, and something else."""

    def __init__(self, arch=ARCH, **kwargs):
        super().__init__()
        self.backbone = KAT(arch, **{'img_size': 64, **kwargs})
        self.neck = nn.Linear(2, 2)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        maps = self.backbone(torch.stack(list(inputs)))
        return {'loss': maps[0].square().mean()} if mode == 'loss' else maps


def _flashkat(state):
    names = {'weight_numerator': 'numerator_v', 'weight_denominator': 'denominator_v'}
    return {re.sub('weight_[nd].*tor$', lambda n: names[n[0]], k): v for k, v in state.items()}


LAYOUTS = {
    'plain.pth': lambda state: state,
    'safe.safetensors': lambda state: state,
    'state_dict.pth': lambda state: {'state_dict': state, 'epoch': 3},
    'model.pth': lambda state: {'model': state, 'optimizer': {}},
    'ema.pth': lambda state: {
        'state_dict': {key: torch.zeros_like(value) for key, value in state.items()},
        'state_dict_ema': state,
    },
    'module.pth': lambda state: {'state_dict': {f'module.{k}': v for k, v in state.items()}},
    'flashkat.pth': _flashkat,
    'flashkat_module.pth': lambda state: {
        'model': {f'module.{k}': v for k, v in _flashkat(state).items()}
    },
}


def save(content, path):
    """Saves a file as its name says, and returns the name."""
    if Path(path).suffix == '.safetensors':
        from safetensors.torch import save_file

        save_file(content, path)
    else:
        torch.save(content, path)
    return str(path)
