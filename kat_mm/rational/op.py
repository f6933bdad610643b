"""The torch ops kat_mm::rational and kat_mm::rational_backward: schema, fake, autograd, loading."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import torch_internals as internals
from .arguments import DTYPES, check_arguments
from .reference import rational_backward_reference, rational_reference

MIN_TORCH = (2, 10)  # the stable ABI that the compiled libraries are built against
HALF_DTYPES = (torch.float16, torch.bfloat16)

library = torch.library.Library('kat_mm', 'DEF')
library.define(
    'rational(Tensor x, Tensor numerator, Tensor denominator, int channel_dim=-1, '
    'ScalarType? out_dtype=None) -> Tensor',
    tags=(torch.Tag.pt2_compliant_tag,),
)
library.define(
    'rational_backward(Tensor grad, Tensor x, Tensor numerator, Tensor denominator, '
    'int channel_dim=-1, bool coefficient_grads=True) -> (Tensor, Tensor, Tensor)',
    tags=(torch.Tag.pt2_compliant_tag,),
)
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


def _setup_context(ctx, inputs, output):
    x, numerator, denominator, ctx.channel_dim, _ = inputs
    ctx.save_for_backward(x, numerator, denominator)


def _backward(ctx, grad):
    _, needs_a, needs_b, *_ = ctx.needs_input_grad
    grad_x, grad_a, grad_b = _backward_op(
        grad, *ctx.saved_tensors, ctx.channel_dim, needs_a or needs_b
    )
    return grad_x, grad_a if needs_a else None, grad_b if needs_b else None, None, None


_op, _backward_op = torch.ops.kat_mm.rational.default, torch.ops.kat_mm.rational_backward.default
torch.library.register_autograd(
    'kat_mm::rational', _backward, setup_context=_setup_context, lib=library
)


def eager_call(op: Callable, setup_context: Callable, backward: Callable) -> Callable:
    """Returns a function that calls `op`, whose autograd formula this is, by the shortest way.

    Eager calls skip torch.library's own autograd, which takes longer than the kernel at small
    sizes; tracing, torch.compile and torch.vmap need it. The autograd node has the name of the op,
    such as RationalBackward.
    """

    # Names of this function, as each look-up of a global one counts.
    below_autograd, is_grad_enabled = internals.below_autograd, torch.is_grad_enabled
    is_compiling, is_transformed = torch.compiler.is_compiling, internals.is_transformed
    is_tracing = internals.is_tracing

    def forward(ctx, *inputs):
        with below_autograd():
            output = op(*inputs)
        setup_context(ctx, inputs, output)
        return output

    name = op.name().rpartition('::')[2].title().replace('_', '')
    methods = dict(
        forward=staticmethod(forward), backward=staticmethod(once_differentiable(backward))
    )
    apply = type(name, (torch.autograd.Function,), methods).apply

    def call(*inputs):
        if is_compiling() or is_transformed() or is_tracing():
            return op(*inputs)
        if is_grad_enabled():
            return apply(*inputs)
        with below_autograd():
            return op(*inputs)

    return call


_call = eager_call(_op, _setup_context, _backward)


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
            return _call(x, numerator, denominator, channel_dim, out_dtype)
        return _call(x, numerator, denominator, channel_dim, None).to(out_dtype)
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
