"""Learnable activations by name, for the GR-KAN layer. Takes torch alone.

'rational' is `kat_mm.rational.GroupRational`. Each file here may define others; they are found by
being in this folder. A new one is a module with a name:

    @ACTIVATIONS.register('mine')
    class MyActivation(nn.Module):
        def __init__(self, num_groups=8, init='swish', channel_dim=-1, **arguments_of_its_own): ...
        def reset_parameters(self): ...  # to the function `init`
        def forward(self, x): ...  # [..., channels], whose num_groups groups may differ

`init` is what the activation starts as, at least 'identity' and 'swish', which are act1 and act2
of a GR-KAN layer. Parameters of one dimension take no weight decay, by our parameter groups and by
recipes that decay by dimension.
"""

from ...rational import GroupRational
from ...registry import ACTIVATIONS, import_all

ACTIVATIONS.register('rational')(GroupRational)
import_all(__name__)

__all__ = ['ACTIVATIONS']
