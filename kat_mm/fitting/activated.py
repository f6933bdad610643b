"""The first layer of a converted MLP."""

import torch
from torch import nn

from ..rational.layer import GroupRational


class ActivatedLayer(nn.Module):
    """Computes layer(act1(x)): the first layer of an MLP, with the activation in front of it.

    It stands where `layer` stood and has its attributes, but for its parameters and buffers: code
    that computes with `fc1.weight` would skip act1, so reading it raises. `fc1.layer.weight` is
    there. State dicts from before the conversion, with `fc1.weight`, load.

    Args:
        act1: the activation.
        layer: a linear layer or a convolution.

    Raises:
        AttributeError: for reading a parameter or buffer of the layer.
    """

    def __init__(self, act1: GroupRational, layer: nn.Module):
        super().__init__()
        self.act1 = act1
        self.layer = layer
        self.train(layer.training)
        self.register_load_state_dict_pre_hook(_take_plain_keys)

    def forward(self, *args, **kwargs):
        if args:
            return self.layer(self.act1(args[0]), *args[1:], **kwargs)
        (name, x), *others = kwargs.items()
        return self.layer(**{name: self.act1(x)}, **dict(others))

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            layer = self.__dict__.get('_modules', {}).get('layer')
            if layer is None or not hasattr(layer, name):
                raise
        value = getattr(layer, name)
        if torch.is_tensor(value):
            raise AttributeError(
                f'{name!r} of a layer that to_kat has put an activation in front of: code that '
                f'computes with it would skip that. Call the layer, or read layer.{name}'
            )
        return value


def _take_plain_keys(module, state_dict, prefix, *_):
    """Gives the keys of the layer alone, as before the conversion, those that it has now."""
    for name in (*module.layer._parameters, *module.layer._buffers):
        if prefix + name in state_dict:
            state_dict[f'{prefix}layer.{name}'] = state_dict.pop(prefix + name)
