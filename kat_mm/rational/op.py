"""The torch ops kat_mm::rational and kat_mm::rational_backward: schema, fake, autograd, loading."""

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor

from .reference import rational_backward_reference, rational_reference

MIN_TORCH = (2, 10)  # the stable ABI that the compiled libraries are built against
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_HALF_DTYPES = (torch.float16, torch.bfloat16)

_library = torch.library.Library('kat_mm', 'DEF')
_library.define(
    'rational(Tensor x, Tensor numerator, Tensor denominator, int channel_dim=-1, '
    'ScalarType? out_dtype=None) -> Tensor',
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    'rational_backward(Tensor grad, Tensor x, Tensor numerator, Tensor denominator, '
    'int channel_dim=-1, bool coefficient_grads=True) -> (Tensor, Tensor, Tensor)',
    tags=(torch.Tag.pt2_compliant_tag,),
)
# The reference serves every device for which no compiled kernel is registered.
_library.impl('rational', rational_reference, 'CompositeExplicitAutograd')
_library.impl('rational_backward', rational_backward_reference, 'CompositeExplicitAutograd')


@torch.library.register_fake('kat_mm::rational', lib=_library)
def _rational_fake(x, numerator, denominator, channel_dim=-1, out_dtype=None):
    return torch.empty_like(x, dtype=out_dtype or x.dtype)


@torch.library.register_fake('kat_mm::rational_backward', lib=_library)
def _rational_backward_fake(
    grad, x, numerator, denominator, channel_dim=-1, coefficient_grads=True
):
    def like(coefficients):
        shape = coefficients.shape if coefficient_grads else 0
        return coefficients.new_empty(shape)

    return torch.empty_like(x), like(numerator), like(denominator)


def _setup_context(ctx, inputs, output):
    x, numerator, denominator, ctx.channel_dim, _ = inputs
    ctx.save_for_backward(x, numerator, denominator)


def _backward(ctx, grad):
    x, numerator, denominator = ctx.saved_tensors
    coefficient_grads = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
    grad_x, grad_numerator, grad_denominator = torch.ops.kat_mm.rational_backward(
        grad, x, numerator, denominator, ctx.channel_dim, coefficient_grads
    )
    return (
        grad_x,
        grad_numerator if ctx.needs_input_grad[1] else None,
        grad_denominator if ctx.needs_input_grad[2] else None,
        None,
        None,
    )


torch.library.register_autograd(
    'kat_mm::rational', _backward, setup_context=_setup_context, lib=_library
)


def check_arguments(x: Tensor, numerator: Tensor, denominator: Tensor, channel_dim: int) -> None:
    """Raises the error that names what is wrong with the arguments of `rational`, if anything."""
    for name, tensor in (('x', x), ('numerator', numerator), ('denominator', denominator)):
        if tensor.dtype not in _DTYPES:
            raise TypeError(
                f'rational: {name} has dtype {tensor.dtype}; '
                'supported are float16, bfloat16, float32 and float64'
            )
    if not x.device == numerator.device == denominator.device:
        raise RuntimeError(
            f'rational: x is on {x.device}, numerator on {numerator.device} and denominator on '
            f'{denominator.device}; move them to one device'
        )
    shapes = (
        f'numerator {tuple(numerator.shape)} and denominator {tuple(denominator.shape)} '
        f'for x {tuple(x.shape)}'
    )
    if numerator.dim() != 2 or denominator.dim() != 2:
        raise ValueError(f'rational: coefficients must be [1 or G, order], got {shapes}')
    if not (2 <= numerator.shape[1] <= 9 and 1 <= denominator.shape[1] <= 8):
        raise ValueError(
            'rational: numerator must be [1 or G, m + 1] and denominator [1 or G, n] '
            f'with m and n from 1 to 8, got {shapes}'
        )
    rows = {numerator.shape[0], denominator.shape[0]} - {1}
    if len(rows) > 1 or 0 in rows:
        raise ValueError(f'rational: both must have 1 row or the same number of rows, got {shapes}')
    if x.dim() == 0:
        raise ValueError('rational: x must have at least one dimension, got a scalar')
    if not -x.dim() <= channel_dim < x.dim():
        raise IndexError(f'rational: channel_dim={channel_dim} is out of range for x {x.dim()}-D')
    groups = rows.pop() if rows else 1
    if x.shape[channel_dim] % groups:
        raise ValueError(
            f'rational: the {x.shape[channel_dim]} channels at dimension {channel_dim} of x '
            f'{tuple(x.shape)} cannot be divided into the {groups} groups of {shapes}'
        )


def rational(x: Tensor, numerator: Tensor, denominator: Tensor, channel_dim: int = -1) -> Tensor:
    """Computes P(x) / Q(x) with one (P, Q) per group of adjacent channels.

    P(x) = a0 + a1 x + ... + am x^m and Q(x) = 1 + |b1||x| + ... + |bn||x|^n (KAT,
    arXiv 2409.10594, section 4). Q >= 1: there is no pole. Differentiable once, in all three
    tensors; the gradients are bitwise reproducible.

    Args:
        x: any shape of rank >= 1, in fp16, bf16, fp32 or fp64. Dense memory in any order of the
            dimensions is read without a copy.
        numerator: [1 or G, m + 1], one row for all groups or one for each, m from 1 to 8.
        denominator: [1 or G, n], n from 1 to 8.
        channel_dim: the channel dimension of x; its size must be a multiple of G.

    Returns:
        A tensor of the shape and dtype of x. Under autocast it has the autocast dtype (an fp64
        x stays fp64), and x is still read as it is. Arithmetic is fp32, or fp64 for an fp64 x.

    Raises:
        TypeError: for a dtype that is not one of the four.
        ValueError: for shapes that do not fit, with all of them named.
        IndexError: for a channel_dim out of range.
        RuntimeError: for tensors on different devices.
    """
    check_arguments(x, numerator, denominator, channel_dim)
    dtype, device = x.dtype, x.device.type
    # Kernels take coefficients in the dtype of the arithmetic; autograd casts gradients back.
    compute_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    numerator, denominator = numerator.to(compute_dtype), denominator.to(compute_dtype)
    out_dtype = dtype
    if dtype != torch.float64 and device != 'meta' and torch.is_autocast_enabled(device):
        out_dtype = torch.get_autocast_dtype(device)
    if out_dtype == dtype or (dtype == torch.float32 and out_dtype in _HALF_DTYPES):
        return torch.ops.kat_mm.rational(
            x, numerator, denominator, channel_dim, None if out_dtype == dtype else out_dtype
        )
    return torch.ops.kat_mm.rational(x, numerator, denominator, channel_dim).to(out_dtype)


def compiled_devices() -> tuple[str, ...]:
    """Returns the device types ('cpu', 'cuda') that run the op by a compiled kernel."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return tuple(key.lower() for key in ('CPU', 'CUDA') if has_kernel('kat_mm::rational', key))


def _load_compiled() -> None:
    """Registers the compiled kernels; where any is missing, warns once what and how to get it."""
    version = tuple(int(part) for part in torch.__version__.split('.')[:2])
    if version < MIN_TORCH:
        warnings.warn(
            f'kat_mm: torch {torch.__version__} is older than 2.10, which the compiled rational '
            'op needs: the op runs in plain PyTorch, correct but slow',
            stacklevel=2,
        )
        return
    folder = Path(__file__).resolve().parent.parent
    missing = []
    for backend, needs in (('cpu', 'a C++ compiler'), ('cuda', "nvcc of torch's CUDA generation")):
        if backend == 'cuda' and not torch.version.cuda:
            continue
        found = sorted(folder.glob(f'_C_{backend}*.so'))
        if found:
            try:
                torch.ops.load_library(os.fspath(found[0]))
            except OSError as error:
                missing.append(f'{found[0].name} cannot be loaded ({error})')
        elif backend == 'cpu' or torch.cuda.is_available():
            missing.append(f'the {backend.upper()} kernels are not built, which takes {needs}')
    if missing:
        warnings.warn(
            f'kat_mm: {"; ".join(missing)}. Without them the op runs in plain PyTorch, correct but '
            "slow. To build them: 'pip install --no-build-isolation -e .' in a clone of kat_mm",
            stacklevel=2,
        )


_load_compiled()
