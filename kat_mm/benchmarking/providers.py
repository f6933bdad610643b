"""What tools/benchmark_rational.py compares: the op, other ways to compute it, GELU, copies."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._functorch import config as autograd_config
from torch.nn import functional as F

from ..rational import rational, rational_reference

Function = Callable[[Tensor, Tensor, Tensor], Tensor]
BUILT_IN = ('kernel', 'reference', 'compiled', 'gelu', 'copy', 'cast')
MOST_SETS = 4096


@dataclass(frozen=True)
class Case:
    """An activation: its shape, where its channels are, its dtype and that of the result."""

    shape: tuple[int, ...]
    channel_dim: int
    dtype: torch.dtype
    out_dtype: torch.dtype

    def bytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Provider:
    """One way to compute an activation.

    Attributes:
        function: (x, numerator, denominator) -> y.
        prepare: (x, numerator, denominator) -> what backward needs of the forward pass.
        backward: (grad, what was prepared) -> the gradients.
        differentiable: whether autograd can take function.
    """

    function: Function
    prepare: Callable
    backward: Callable
    differentiable: bool = True


def built_in(case: Case, only: Sequence[str] = BUILT_IN) -> dict[str, Provider]:
    """Returns those of some built-in providers that a case has, by name."""
    out, dim = case.out_dtype, case.channel_dim
    casts = out != case.dtype

    def kernel(x, a, b):
        return torch.ops.kat_mm.rational(x, a, b, dim, out) if casts else rational(x, a, b, dim)

    def kernel_backward(grad, saved):
        return torch.ops.kat_mm.rational_backward.default(grad, *saved, dim, True)

    def reference(x, a, b):
        return rational_reference(x, a, b, dim, out)

    def gelu_backward(grad, x):
        return torch.ops.aten.gelu_backward.default(grad, x).to(case.dtype)

    def copy(x, a, b):
        return torch.empty_like(x, dtype=out).copy_(x)

    providers = {
        'kernel': Provider(kernel, lambda x, a, b: (x, a, b), kernel_backward),
        'reference': by_autograd(reference),
        'gelu+cast' if casts else 'gelu': Provider(
            lambda x, a, b: F.gelu(x.to(out)), lambda x, a, b: x.to(out), gelu_backward
        ),
        'copy': Provider(copy, lambda x, a, b: x, torch.add, differentiable=False),
    }
    if 'compiled' in only:  # the compiler takes seconds to import
        torch.compiler.reset()  # for the shape of this case, whatever was compiled before
        providers['compiled'] = by_autograd(torch.compile(reference, dynamic=False))
    if casts:
        providers['cast'] = Provider(
            lambda x, a, b: x.to(out), lambda x, a, b: None, lambda grad, _: grad.to(case.dtype)
        )
    return {name: p for name, p in providers.items() if name.partition('+')[0] in only}


def by_autograd(function: Function) -> Provider:
    """Returns a provider whose backward pass is autograd's, of one graph again and again."""

    def prepare(*inputs):
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        with torch.enable_grad():
            return function(*leaves), leaves

    def backward(grad, saved):
        y, leaves = saved
        return torch.autograd.grad(y, leaves, grad, retain_graph=True)

    # A compiled backward pass may else write into what it has saved, and then runs only once.
    autograd_config.donated_buffer = False
    return Provider(function, prepare, backward)


@dataclass(frozen=True)
class Inputs:
    """Several activations with the gradients of their results, and one pair of coefficients."""

    activations: Sequence[Tensor]
    grads: Sequence[Tensor]
    coefficients: tuple[Tensor, Tensor]


def make_inputs(
    case: Case, order: tuple[int, int], groups: int, device: torch.device, working_set: int
) -> Inputs:
    """Draws inputs, as many that all activations together have `working_set` bytes or more."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape, dtype):
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    sets = min(max(-(-working_set // case.bytes()), 1), MOST_SETS)
    # Copies of one: what they hold doesn't matter, only that they lie in different places.
    x, grad = draw(*case.shape, dtype=case.dtype), draw(*case.shape, dtype=case.out_dtype)
    coefficients = (
        draw(1, order[0] + 1, dtype=torch.float32),
        draw(groups, order[1], dtype=torch.float32),
    )
    return Inputs(
        [x, *(x.clone() for _ in range(sets - 1))],
        [grad, *(grad.clone() for _ in range(sets - 1))],
        coefficients,
    )


def forward_call(provider: Provider, inputs: Inputs) -> Callable[[], None]:
    """Returns a call that runs forward on the next activation, and is warm."""
    arguments = [(x, *inputs.coefficients) for x in inputs.activations]
    return _rotating(torch.no_grad()(provider.function), arguments)


def backward_call(provider: Provider, inputs: Inputs) -> Callable[[], None]:
    """Returns a call that runs backward on the next activation, and is warm."""
    saved = [provider.prepare(x, *inputs.coefficients) for x in inputs.activations]
    return _rotating(provider.backward, list(zip(inputs.grads, saved, strict=True)))


def _rotating(function: Callable, arguments: Sequence[tuple]) -> Callable[[], None]:
    # As many results are kept as there are arguments, so that they too lie in different places.
    results = [None] * len(arguments)
    places = itertools.cycle(range(len(arguments)))

    def call() -> None:
        place = next(places)
        results[place] = function(*arguments[place])

    for _ in range(max(len(arguments), 3)):
        call()
    return call


def memory(provider: Provider, inputs: Inputs) -> dict[str, int]:
    """Measures the memory of one forward and backward pass by autograd, in bytes.

    Returns:
        'saved': what autograd keeps for the backward pass, the activation included if it is kept.
        'memory', on a GPU: the most that is allocated at any time, beyond the inputs.
    """
    x, grad = inputs.activations[0], inputs.grads[0]
    leaves = [tensor.detach().requires_grad_() for tensor in (x, *inputs.coefficients)]
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    def run():
        y = provider.function(*leaves)
        torch.autograd.grad(y, leaves, grad, allow_unused=True)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    result = {'saved': sum(storages.values())}
    if x.is_cuda:
        run()  # without hooks a compiled function may be compiled anew
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run()
        result['memory'] = torch.cuda.max_memory_allocated() - held
    return result
