"""Small MLPs to convert."""

from itertools import pairwise

import timm.layers
from torch import nn


def mlp(act=nn.GELU, inputs=16, hidden=32, **kwargs):
    return timm.layers.Mlp(inputs, hidden, act_layer=act, **kwargs)


def chain(*channels, act=nn.GELU):
    layers = [layer for pair in pairwise(channels) for layer in (nn.Linear(*pair), act())]
    return nn.Sequential(*layers[:-1])


class QuickGELU(nn.Module):
    def __init__(self):
        super().__init__()
        self.sigmoid = nn.Sigmoid()  # which is an activation of its own

    def forward(self, x):
        return x * self.sigmoid(1.702 * x)
