"""Floating-point operations of the ops, as torch's FlopCounterMode counts: a multiply-add is two.

Scores and what is multiplied with coefficients count, as where attention is computed without these
ops; sines and cosines, like all functions of single elements, count nothing.
"""

from types import ModuleType

import torch


def operator_attention_flops(qkv_shape, coefficients_shape, *args, **kwargs) -> int:
    """Returns those of scores, r sums of F functions of each, and products with W and values."""
    pairs, dims, rank, count = _sizes(qkv_shape, coefficients_shape)
    return 2 * pairs * (qkv_shape[1] * (dims + rank * count) + 2 * rank * dims)


def operator_attention_backward_flops(
    grad_shape, qkv_shape, coefficients_shape, *args, **kwargs
) -> int:
    """Returns those of scores, their slopes, and the gradients of all inputs."""
    pairs, dims, rank, count = _sizes(qkv_shape, coefficients_shape)
    return 2 * pairs * (qkv_shape[1] * (3 * dims + 2 * rank * count) + 4 * rank * dims)


def _sizes(qkv_shape, coefficients_shape) -> tuple[int, int, int, int]:
    """Returns how many queries there are in all heads, d, r and F."""
    (batch, tokens, channels), (heads, rank, _, count) = qkv_shape, coefficients_shape
    return batch * tokens * heads, channels // (3 * heads), rank, count


FORMULAS = {
    'operator_attention': operator_attention_flops,
    'operator_attention_backward': operator_attention_backward_flops,
}


def register(flop_counter: ModuleType) -> None:
    """Makes torch.utils.flop_counter count the ops."""
    for name, formula in FORMULAS.items():
        flop_counter.register_flop_formula(getattr(torch.ops.kat_mm, name))(formula)
