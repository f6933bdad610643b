"""Floating-point operations of the ops, as torch's FlopCounterMode counts: a multiply-add is two.

Scores and what is multiplied with coefficients count, as where attention is computed without these
ops; sines and cosines, like all functions of single elements, count nothing.
"""

import math
from types import ModuleType

import torch


def fourier_sums_flops(q_shape, k_shape, coefficients_shape, *args, **kwargs) -> int:
    """Returns those of scores q k^T, and of r sums of 2 G functions of each."""
    _, rank, keys, count = coefficients_shape
    return 2 * math.prod(q_shape[:-1]) * keys * (q_shape[-1] + rank * count)


def fourier_sums_backward_flops(
    grad_shape, q_shape, k_shape, coefficients_shape, *args, **kwargs
) -> int:
    """Returns those of scores, their slopes, and the gradients of q, k and coefficients."""
    _, rank, keys, count = coefficients_shape
    return 2 * math.prod(q_shape[:-1]) * keys * (3 * q_shape[-1] + 2 * rank * count)


FORMULAS = {
    'fourier_sums': fourier_sums_flops,
    'fourier_sums_backward': fourier_sums_backward_flops,
}


def register(flop_counter: ModuleType) -> None:
    """Makes torch.utils.flop_counter count the ops."""
    for name, formula in FORMULAS.items():
        flop_counter.register_flop_formula(getattr(torch.ops.kat_mm, name))(formula)
