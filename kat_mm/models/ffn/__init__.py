"""The feed-forward layers of a transformer block. Takes torch alone.

Each file here may define layers; they are found by being in this folder. A new one is a module
with a name:

    @FFNS.register('mine')
    class MyFFN(nn.Module):
        def __init__(self, embed_dims, hidden_channels, **arguments_of_its_own): ...
        def forward(self, x): ...  # [..., embed_dims], in and out

One that can take the layer norm in front of it into a kernel of its own sets `fuses_norm = True`;
its block then calls it as layer(x, norm=norm) instead of layer(norm(x)).
"""

from ...registry import FFNS, import_all

import_all(__name__)

__all__ = ['FFNS']
