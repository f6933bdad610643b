"""Linear layers as one node of autograd, with the casts of autocast in it.

PyTorch's takes five nodes more under autocast: views, a transpose and casts. At small sizes, where
the host is the limit, these take longer than the products.
"""

import torch
from torch import Tensor, nn

from . import cpp_autograd
from .torch_internals import has_global_hooks, has_hooks

_is_compiling = torch.compiler.is_compiling
_plain = cpp_autograd.library and cpp_autograd.library.linear


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """Computes layer(x), by the node in C++ where the call is plain and there is one.

    Values and gradients have the bits of torch's. A weight that several calls in one autocast
    context share is cast in each of them, where it gets gradients.
    """
    if (
        _plain is not None
        and type(layer) is nn.Linear
        and not (_is_compiling() or has_hooks(layer) or has_global_hooks())
    ):
        parameters = layer._parameters
        if 'weight' in parameters and 'bias' in parameters:  # None of a layer without bias
            y = _plain(x, parameters['weight'], parameters['bias'])
            if y is not None:
                return y
    return layer(x)


def _gradients(grad, x, weight, wants_x, wants_weight, wants_bias):
    """Computes the gradients that the node in C++ leaves to Python, as they are not plain.

    Of what no gradient that is wanted needs there is None, and so is a gradient that is not there.
    """
    if grad is None:
        return None, None, None
    rows = grad.reshape(-1, grad.shape[-1])
    return (
        grad @ weight if wants_x else None,
        rows.t() @ x.reshape(-1, x.shape[-1]) if wants_weight else None,
        rows.sum(0) if wants_bias else None,
    )


if cpp_autograd.library is not None:
    cpp_autograd.library.serve_linear(_gradients)
