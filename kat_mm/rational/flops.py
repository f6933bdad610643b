"""Floating-point operations of the ops, as torch's FlopCounterMode counts: a multiply-add is two.

By Horner's scheme, as in KAT (arXiv 2409.10594, section 4), for an element and orders m and n.
What normalises in the fused op counts nothing, as torch counts nothing for layer norms.
"""

import math
from types import ModuleType

import torch


def rational_flops(x_shape, numerator_shape, denominator_shape, *args, **kwargs) -> int:
    """Returns 2m + 2n + 3 for each element of x."""
    m, n = numerator_shape[1] - 1, denominator_shape[1]
    return math.prod(x_shape) * (2 * m + 2 * n + 3)


def rational_backward_flops(
    grad_shape,
    x_shape,
    numerator_shape,
    denominator_shape,
    channel_dim=-1,
    coefficient_grads=True,
    **kwargs,
) -> int:
    """Returns the operations of the formulas in ops/README.md for each element of x.

    P, Q, P' and Q' take 4m + 4n - 4, the gradient of x from them 7; a term of the coefficients'
    gradients is one multiplication by x or |x| (but for a0) and one addition, 2m + 2n + 1.
    """
    m, n = numerator_shape[1] - 1, denominator_shape[1]
    terms = 2 * m + 2 * n + 1 if coefficient_grads else 0
    return math.prod(x_shape) * (4 * m + 4 * n + 3 + terms)


def layer_norm_rational_flops(
    x_shape, weight_shape, bias_shape, numerator_shape, denominator_shape, *args, **kwargs
) -> int:
    """Returns those of the rational op in it."""
    return rational_flops(x_shape, numerator_shape, denominator_shape)


def layer_norm_rational_backward_flops(
    grad_shape,
    x_shape,
    statistics_shape,
    weight_shape,
    bias_shape,
    numerator_shape,
    denominator_shape,
    **kwargs,
) -> int:
    """Returns those of the rational op's backward pass in it."""
    return rational_backward_flops(grad_shape, x_shape, numerator_shape, denominator_shape)


FORMULAS = {
    'rational': rational_flops,
    'rational_backward': rational_backward_flops,
    'layer_norm_rational': layer_norm_rational_flops,
    'layer_norm_rational_backward': layer_norm_rational_backward_flops,
}


def register(flop_counter: ModuleType) -> None:
    """Makes torch.utils.flop_counter count the ops."""
    for name, formula in FORMULAS.items():
        flop_counter.register_flop_formula(getattr(torch.ops.kat_mm, name))(formula)
