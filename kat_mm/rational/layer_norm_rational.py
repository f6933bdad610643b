"""Layer norm and rational activation as one op: kat_mm::layer_norm_rational.

Under autocast, layer norm writes fp32. Apart, the activation behind it would keep that fp32 copy
for the backward pass, which a linear layer behind a layer norm does not. Together they keep what
layer norm alone does, and pass over memory once.
"""

import math

import torch
from torch import Tensor, fx, nn

from . import cpp_autograd
from .autograd import differentiable, gradients
from .layer import GroupRational
from .op import autocast_dtype, call_rational, compiled_devices, library
from .reference import rational_formula
from .torch_internals import has_global_hooks, has_hooks, has_tangents, is_transformed

# What the compiled kernel takes; anything else is computed by two ops.
MAX_CHANNELS = 1024
MAX_ORDER = (5, 4)
HAS_KERNEL = 'cuda' in compiled_devices()


def layer_norm_rational_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    eps: float,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes rational(layer_norm(x)) of the last dimension of x, by two ops.

    Returns:
        The result, in `out_dtype` or that of x, and the statistics [rows, 2] that the backward pass
        needs: the mean and the reciprocal standard deviation of each row.
    """
    normed, mean, scale = torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)
    y = torch.ops.kat_mm.rational(normed, numerator, denominator, -1, out_dtype)
    return y, torch.stack([mean.flatten(), scale.flatten()], 1)


def layer_norm_rational_backward_reference(
    grad: Tensor,
    x: Tensor,
    statistics: Tensor,
    weight: Tensor,
    bias: Tensor,
    numerator: Tensor,
    denominator: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Computes the gradients of x, weight, bias, numerator and denominator, by two ops."""
    mean, scale = statistics.t().contiguous().view(2, *x.shape[:-1], 1)
    normed = (x - mean) * scale * weight + bias
    grad_normed, grad_numerator, grad_denominator = torch.ops.kat_mm.rational_backward(
        grad, normed, numerator, denominator
    )
    grad_x, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
        grad_normed, x, x.shape[-1:], mean, scale, weight, bias, [True, True, True]
    )
    return grad_x, grad_weight, grad_bias, grad_numerator, grad_denominator


library.impl('layer_norm_rational', layer_norm_rational_reference, 'CompositeExplicitAutograd')
library.impl(
    'layer_norm_rational_backward',
    layer_norm_rational_backward_reference,
    'CompositeExplicitAutograd',
)


@torch.library.register_fake('kat_mm::layer_norm_rational', lib=library)
def _fake(x, weight, bias, numerator, denominator, eps, out_dtype=None):
    rows = math.prod(x.shape[:-1])  # numel() would make a constant of a dynamic size
    return x.new_empty(x.shape, dtype=out_dtype or x.dtype), x.new_empty((rows, 2))


@torch.library.register_fake('kat_mm::layer_norm_rational_backward', lib=library)
def _backward_fake(grad, x, statistics, weight, bias, numerator, denominator):
    return tuple(t.new_empty(t.shape) for t in (x, weight, bias, numerator, denominator))


def layer_norm_rational_formula(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    eps: float,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes `layer_norm_rational_reference` in what has right derivatives of any order."""
    normed, statistics = _normalize(x, weight, bias, eps)
    return rational_formula(normed, numerator, denominator, -1, out_dtype), statistics


def _two_ops(x, weight, bias, numerator, denominator, eps, out_dtype):
    """Computes the same by the kernels of the rational op."""
    normed, statistics = _normalize(x, weight, bias, eps)
    return call_rational(normed, numerator, denominator, -1, out_dtype), statistics


def _normalize(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Computes layer norm by its definition, and the statistics.

    torch.nn.functional.layer_norm has wrong derivatives in third order, and in the second one in
    forward mode and under torch.vmap (torch 2.11 to 2.15).
    """
    mean = x.mean(-1, keepdim=True)
    scale = (x.var(-1, correction=0, keepdim=True) + eps).rsqrt()
    statistics = torch.stack([mean.flatten(), scale.flatten()], 1)
    return (x - mean) * scale * weight + bias, statistics


def _setup_context(ctx, inputs, output):
    *_, ctx.eps, ctx.out_dtype = inputs
    ctx.save_for_backward(inputs[0], output[1], *inputs[1:5])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, grad_statistics):
    if grad is None and grad_statistics is None:
        return (None,) * 7
    grads = {i: g for i, g in enumerate((grad, grad_statistics)) if g is not None}
    return *_gradients(grads, ctx.saved_tensors, ctx.eps, ctx.out_dtype), None, None


def _gradients(grads, saved, eps, out_dtype):
    """Computes the gradients, given those of some outputs by their numbers."""
    x, statistics, *parameters = saved
    is_first_order = not (torch.is_grad_enabled() or is_transformed() or has_tangents())
    if is_first_order and list(grads) == [0]:
        return _call_backward(grads[0], x, statistics, *parameters)

    def formula(*tensors):
        outputs = layer_norm_rational_formula(*tensors, eps, out_dtype)
        return tuple(outputs[i] for i in grads)

    return gradients(formula, (x, *parameters), tuple(grads.values()))


def _refuse(*inputs):
    raise NotImplementedError(
        'kat_mm::layer_norm_rational_backward has no derivatives; '
        'those of kat_mm::layer_norm_rational are of any order'
    )


_call = differentiable(
    torch.ops.kat_mm.layer_norm_rational.default,
    layer_norm_rational_formula,
    _setup_context,
    _backward,
    library,
    transformed=_two_ops,
)
_call_backward = differentiable(
    torch.ops.kat_mm.layer_norm_rational_backward.default,
    _refuse,
    lambda ctx, inputs, output: None,
    _refuse,
    library,
    transformed=_refuse,
)


def layer_norm_rational(x: Tensor, norm: nn.LayerNorm, act: GroupRational) -> Tensor:
    """Computes act(norm(x)) of x [..., channels], in one op where a kernel for it is compiled.

    That is on a GPU, for an fp32 x with at most 1024 channels, 4 of them or a multiple in each
    group, and orders up to (5, 4). Elsewhere, and where hooks of the modules want to be called, it
    is two ops. Shapes, dtypes and errors are those of the modules.
    """
    if isinstance(x, fx.Proxy):  # torch.fx traces two nodes
        return act(norm(x))
    is_known = type(norm) is nn.LayerNorm and type(act) is GroupRational
    if not (x.is_cuda and x.dtype is torch.float32 and HAS_KERNEL and is_known):
        return act(norm(x))
    if has_hooks(norm) or has_hooks(act) or has_global_hooks():
        return act(norm(x))
    if _plain is not None and not _is_compiling():
        y = call_plain(x, norm, act)
        if y is not None:
            return y
    if x.dim() == 0 or not _fits(x, norm, act):
        return act(norm(x))
    inputs = norm.weight, norm.bias, act.numerator, act.denominator
    if any(t.dtype is not torch.float32 or t.device != x.device for t in inputs):
        return act(norm(x))
    return _call(x, *inputs, norm.eps, autocast_dtype(x))[0]


_is_compiling = torch.compiler.is_compiling
_plain = cpp_autograd.library and cpp_autograd.library.layer_norm_rational


def call_plain(x: Tensor, norm: nn.LayerNorm, act: GroupRational) -> Tensor | None:
    """Computes it with the node in C++, if the call is plain and its kernel takes the shapes."""
    # Not by attribute, as a module takes as long to find one as the rest of this takes.
    affine, coefficients = norm._parameters, act._parameters
    return _plain(
        x,
        affine.get('weight'),
        affine.get('bias'),
        coefficients.get('weight_numerator'),
        coefficients.get('weight_denominator'),
        act.num_groups,
        act.order,
        act.shared_numerator,
        act.channel_dim,
        norm.eps,
    )


def _gradients_for_cpp(grad, x, statistics, weight, bias, numerator, denominator, *rest):
    """Computes the gradients that the node in C++ leaves to Python, as they are not plain."""
    shape_a, shape_b, eps = rest
    parameters = weight, bias, numerator.view(shape_a), denominator.view(shape_b)
    *grads, grad_a, grad_b = _gradients({0: grad}, (x, statistics, *parameters), eps, grad.dtype)
    return *grads, grad_a.reshape(numerator.shape), grad_b.reshape(denominator.shape)


if cpp_autograd.library is not None:
    cpp_autograd.library.serve_layer_norm_rational(MAX_CHANNELS, *MAX_ORDER, _gradients_for_cpp)


def _fits(x: Tensor, norm: nn.LayerNorm, act: GroupRational) -> bool:
    """Tells whether the compiled kernel takes these shapes."""
    channels = x.shape[-1]
    return (
        norm.normalized_shape == (channels,)
        and norm.weight is not None
        and norm.bias is not None
        and channels <= MAX_CHANNELS
        and channels % (4 * act.num_groups) == 0
        and (act.channel_dim in (-1, x.dim() - 1) or (act.channel_dim is None and x.dim() < 3))
        and act.order[0] <= MAX_ORDER[0]
        and act.order[1] <= MAX_ORDER[1]
    )
