"""The torch ops kat_mm::rational and kat_mm::rational_backward: fake, autograd."""

import torch
from torch import Tensor

from . import cpp_autograd
from . import torch_internals as internals
from .arguments import DTYPES, check_arguments
from .autograd import differentiable, gradients
from .loading import load_compiled
from .reference import (
    rational_backward_formula,
    rational_backward_reference,
    rational_formula,
    rational_reference,
)
from .samples import Samples
from .schemas import SCHEMAS

HALF_DTYPES = (torch.float16, torch.bfloat16)

library = torch.library.Library('kat_mm', 'DEF')
for name, schema in SCHEMAS.items():
    library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
# The reference serves every device for which no compiled kernel is registered.
library.impl('rational', rational_reference, 'CompositeExplicitAutograd')
library.impl('rational_backward', rational_backward_reference, 'CompositeExplicitAutograd')


@torch.library.register_fake('kat_mm::rational', lib=library)
def _rational_fake(x, numerator, denominator, channel_dim=-1, out_dtype=None):
    check_arguments(x, numerator, denominator, channel_dim)
    return torch.empty_like(x, dtype=out_dtype or x.dtype)


@torch.library.register_fake('kat_mm::rational_backward', lib=library)
def _rational_backward_fake(
    grad, x, numerator, denominator, channel_dim=-1, coefficient_grads=True
):
    def like(coefficients):
        shape = coefficients.shape if coefficient_grads else 0
        return coefficients.new_empty(shape)

    return torch.empty_like(x), like(numerator), like(denominator)


_op, _backward_op = torch.ops.kat_mm.rational.default, torch.ops.kat_mm.rational_backward.default


def _setup_context(ctx, inputs, output):
    x, numerator, denominator, ctx.channel_dim, _ = inputs
    ctx.save_for_backward(x, numerator, denominator)


def _backward(ctx, grad):
    _, needs_a, needs_b, *_ = ctx.needs_input_grad
    grad_x, grad_a, grad_b = _call_backward(
        grad, *ctx.saved_tensors, ctx.channel_dim, needs_a or needs_b
    )
    return grad_x, grad_a if needs_a else None, grad_b if needs_b else None, None, None


def _vmap(call, info, in_dims, x, numerator, denominator, channel_dim=-1, out_dtype=None):
    dims = x_dim, *_ = in_dims[:3]
    samples = Samples(info.batch_size, dims, x, numerator, denominator, channel_dim)
    dim = samples.channel_dim
    if samples.share_coefficients:
        return call(x.movedim(x_dim, 0), numerator, denominator, dim + 1, out_dtype), 0
    y = call(samples.join(x, x_dim), *samples.coefficients, dim, out_dtype)
    return samples.split(y), dim


def _vmap_backward(
    call, info, in_dims, grad, x, numerator, denominator, channel_dim=-1, coefficient_grads=True
):
    grad_dim, *dims = in_dims[:4]
    samples = Samples(info.batch_size, tuple(dims), x, numerator, denominator, channel_dim)
    dim = samples.channel_dim
    grad, x = samples.join(grad, grad_dim), samples.join(x, dims[0])
    grad_x, *grads = call(grad, x, *samples.coefficients, dim, coefficient_grads)
    if not coefficient_grads:
        return (samples.split(grad_x), *grads), (dim, None, None)
    return (samples.split(grad_x), *samples.split_coefficients(grads)), (dim, 0, 0)


def _setup_backward_context(ctx, inputs, output):
    *tensors, ctx.channel_dim, ctx.coefficient_grads = inputs
    ctx.save_for_backward(*tensors)


def _backward_of_backward(ctx, *grads):
    def formula(*tensors):
        return rational_backward_formula(*tensors, ctx.channel_dim, ctx.coefficient_grads)

    return *gradients(formula, ctx.saved_tensors, grads), None, None


call_rational = differentiable(_op, rational_formula, _setup_context, _backward, library, _vmap)
_call_backward = differentiable(
    _backward_op,
    rational_backward_formula,
    _setup_backward_context,
    _backward_of_backward,
    library,
    _vmap_backward,
)


def rational(x: Tensor, numerator: Tensor, denominator: Tensor, channel_dim: int = -1) -> Tensor:
    """Computes P(x) / Q(x) with one (P, Q) per group of adjacent channels.

    P(x) = a0 + a1 x + ... + am x^m and Q(x) = 1 + |b1||x| + ... + |bn||x|^n (KAT,
    arXiv 2409.10594, section 4). Q >= 1: there is no pole. All three tensors have
    derivatives of any order, in reverse and forward mode and under torch.func; first gradients are
    bitwise reproducible.

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
    if _plain is not None and not _is_compiling():
        y = _plain(x, numerator, denominator, channel_dim)
        if y is not None:
            return y
    # Kernels take coefficients in the dtype of the arithmetic; autograd casts gradients back.
    dtype = x.dtype
    compute_dtype = dtype if dtype is torch.float64 else torch.float32
    if numerator.dtype is not compute_dtype and numerator.dtype in DTYPES:
        numerator = numerator.to(compute_dtype)
    if denominator.dtype is not compute_dtype and denominator.dtype in DTYPES:
        denominator = denominator.to(compute_dtype)
    out_dtype = autocast_dtype(x)
    try:
        if out_dtype is None or dtype is torch.float32:
            return call_rational(x, numerator, denominator, channel_dim, out_dtype)
        return call_rational(x, numerator, denominator, channel_dim, None).to(out_dtype)
    except RuntimeError:
        check_arguments(x, numerator, denominator, channel_dim)  # says it better
        raise


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Returns the dtype that autocast asks for in the place of that of x, if any."""
    device = x.device.type
    if device == 'meta' or not _is_autocast_enabled(device) or x.dtype is torch.float64:
        return None
    dtype = _get_autocast_dtype(device)
    return dtype if dtype is not x.dtype and dtype in HALF_DTYPES else None


_is_autocast_enabled, _get_autocast_dtype = torch.is_autocast_enabled, torch.get_autocast_dtype


def compiled_devices() -> tuple[str, ...]:
    """Returns the device types ('cpu', 'cuda') that run the op by a compiled kernel."""
    has_kernel = internals.has_kernel
    return tuple(key.lower() for key in ('CPU', 'CUDA') if has_kernel('kat_mm::rational', key))


def _gradients(grad, x, numerator, denominator, *shapes_and_arguments):
    """Computes the gradients that the node in C++ leaves to Python, as they are not plain.

    Its coefficients may have one dimension.
    """
    shape_a, shape_b, channel_dim, wanted = shapes_and_arguments
    grad_x, grad_a, grad_b = _call_backward(
        grad, x, numerator.view(shape_a), denominator.view(shape_b), channel_dim, wanted
    )
    if not wanted:
        return grad_x, None, None
    return grad_x, grad_a.reshape(numerator.shape), grad_b.reshape(denominator.shape)


load_compiled()
_plain, _is_compiling = None, torch.compiler.is_compiling
if cpp_autograd.library is not None:
    _plain = cpp_autograd.library.rational
    _devices = compiled_devices()
    cpp_autograd.library.serve_rational('cpu' in _devices, 'cuda' in _devices, _gradients)
