"""What the op takes of PyTorch that is not public, and what would take its place."""

from torch import _C, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

# A context in which an op skips autograd: public is torch.library.register_autograd, which takes
# longer than the kernel at small sizes.
below_autograd = _C._AutoDispatchBelowAutograd
# Whether torch.func transforms a call: torch.autograd.Function finds out itself, where it has
# `setup_context`, which takes longer in all other calls.
is_transformed = _C._are_functorch_transforms_active
# Whether autograd wants any of these: any(t.requires_grad for t in tensors), which takes longer.
any_requires_grad = _C._any_requires_grad
# Whether torch.jit.trace records a call: torch.jit.is_tracing, which takes 2.5 times as long.
is_tracing = _C._get_tracing_state
# How many dispatch modes, such as counters of operations, see each call: public is nothing.
has_dispatch_modes = _C._len_torch_dispatch_stack
# Whether an op has a kernel of its own for a backend: nothing public tells it.
has_kernel = _C._dispatch_has_kernel_for_dispatch_key
# Whether any module that is called calls hooks: nothing public tells it.
has_global_hooks = _has_any_global_hook


def has_hooks(module: nn.Module) -> bool:
    """Tells whether a module that is called calls hooks of its own: nothing public does.

    A `forward` of the instance, as wrappers set it in the place of that of the class, counts too.
    """
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or 'forward' in module.__dict__
    )


def has_tangents() -> bool:
    """Tells whether forward mode is on: public `unpack_dual` tells it of one tensor, and slowly."""
    return forward_ad._current_level >= 0
