"""Which way the call of an op takes: its kernels where they serve, its formula for the rest.

A kernel computes the value, and another one the first derivative in reverse mode. All other
derivatives (higher orders, forward mode) are those of the op's formula in plain PyTorch.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.library import Library

from . import torch_internals as internals


def differentiable(
    op: Callable,
    formula: Callable,
    setup_context: Callable,
    backward: Callable,
    library: Library,
    vmap: Callable | None = None,
    transformed: Callable | None = None,
) -> Callable:
    """Registers the derivatives of `op`, and returns a function that calls it by the shortest way.

    The op itself, called through torch.ops, is differentiated like the function. Eager calls of the
    function skip the dispatcher's autograd, which takes longer than the kernel at small sizes. The
    autograd node has the name of the op, such as RationalBackward.

    Args:
        op: an overload of torch.ops, whose kernels know nothing of autograd.
        formula: computes the same in differentiable PyTorch, out of place.
        setup_context, backward: as those of a `torch.autograd.Function`. Where autograd records
            `backward`, what it returns must be differentiable.
        library: defines the op.
        vmap: as that of a `torch.autograd.Function`, behind what calls the op for all samples.
        transformed: what computes the same in the transforms of torch.func but forward mode; by
            default the op's kernels do, which takes `vmap`.
    """

    # Names of this function, as each look-up of a global one counts.
    below_autograd, is_grad_enabled = internals.below_autograd, torch.is_grad_enabled
    is_compiling, is_transformed = torch.compiler.is_compiling, internals.is_transformed
    is_tracing, forward_ad = internals.is_tracing, internals.forward_ad
    has_tangents, any_requires_grad = internals.has_tangents, internals.any_requires_grad

    def compute(*inputs):
        with below_autograd():
            return op(*inputs)

    def forward(ctx, *inputs):
        with below_autograd():
            output = op(*inputs)
        setup_context(ctx, inputs, output)
        return output

    name = op.name().rpartition('::')[2].title().replace('_', '')
    methods = dict(forward=staticmethod(forward), backward=staticmethod(backward))
    apply = type(name, (torch.autograd.Function,), methods).apply
    if transformed is None:
        # torch.func asks for another form of the same, which takes longer to call.
        methods |= dict(
            forward=staticmethod(compute),
            setup_context=staticmethod(setup_context),
            vmap=staticmethod(lambda *args: vmap(call, *args)),
        )
        transformed = type(name, (torch.autograd.Function,), methods).apply

    def call(*inputs):
        # The last is has_tangents().
        if is_compiling() or is_transformed() or is_tracing() or forward_ad._current_level >= 0:
            return call_otherwise(*inputs)
        if is_grad_enabled():
            return apply(*inputs)
        with below_autograd():
            return op(*inputs)

    def call_otherwise(*inputs):
        if is_compiling() or is_tracing():
            return op(*inputs)
        return formula(*inputs) if has_tangents() else transformed(*inputs)

    defaults = tuple(p.default for p in inspect.signature(formula).parameters.values())

    def autograd_kernel(*inputs):
        inputs += defaults[len(inputs) :]  # which the dispatcher drops
        if is_transformed() or has_tangents():  # a level of torch.func, which sees the parts
            return formula(*inputs)
        if is_grad_enabled() and any_requires_grad(*inputs):
            return apply(*inputs)
        with below_autograd():
            return op(*inputs)

    library.impl(op, autograd_kernel, 'Autograd')
    if vmap is not None:
        torch.library.register_vmap(op, partial(vmap, op), lib=library)
    return call


def gradients(
    formula: Callable, tensors: Sequence[Tensor], grads: Sequence[Tensor]
) -> Sequence[Tensor]:
    """Returns the gradients of `tensors`, given those of what the formula computes of them.

    They are differentiable where autograd records.
    """
    if internals.is_transformed():
        return torch.func.vjp(formula, *tensors)[1](grads)
    # Unlike torch.func, autograd knows hooks of saved tensors, such as those of checkpoints.
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [t.view_as(t).requires_grad_() for t in tensors]
        outputs = formula(*inputs)
    outputs, grads = zip(
        *((y, grad) for y, grad in zip(outputs, grads, strict=True) if y.requires_grad),
        strict=True,
    )
    return torch.autograd.grad(
        outputs, inputs, grads, create_graph=create_graph, materialize_grads=True
    )
