"""Arithmetic of sizes: numbers or, while a model is exported for images of any size, symbols."""

import torch


def is_symbol(size: int) -> bool:
    """Tells whether a size stands for any one, so that asking for its value would fix it."""
    return isinstance(size, torch.SymInt)


def ceil_div(size: int, step: int) -> int:
    """Computes how many steps cover a size."""
    # Without a negative dividend, whose quotient ONNX rounds up.
    return (size + step - 1) // step
