"""A CUDA graph of a function's forward pass, and one of its backward pass, for inputs of one shape.

A GPU runs a graph by one call of the host, whatever number of kernels it has. It reads and writes
the memory that it had when it was captured: inputs are copied there, and weights must stay there.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten

Gradients = dict[tuple[nn.Parameter, tuple[int, ...]], Tensor]  # by parameter and strides

SMALL = 2**16  # elements of an output that is copied, such as a loss that somebody keeps for a log


class CaptureError(RuntimeError):
    """A function cannot be captured; the message says why."""


class Capture:
    """A function as CUDA graphs, for inputs like those given.

    What it computes, and its gradients, are those of the function. To capture runs nothing: neither
    do running statistics change, nor are random numbers drawn. Each call draws others. The
    casts of autocast are part of the graph, so that they follow the weights.

    Args:
        function: takes tensors, in lists or tuples at will, and returns tensors in any of pytree's
            containers. It must neither read a value from the GPU nor copy from the host.
        owner: module that has all parameters of the function.
        args: inputs to be like.
        pool: where the graphs' memory is; graphs of a pool must not be between forward and backward
            at the same time.
        grads: the gradients that graphs of the pool write, which is added to.

    Raises:
        CaptureError: for what can be told before.
        RuntimeError: from CUDA, for what a graph cannot hold; see `recover`.
    """

    def __init__(
        self,
        function: Callable,
        owner: nn.Module,
        args: Sequence,
        pool: tuple[int, int],
        grads: Gradients,
    ):
        leaves, spec = tree_flatten(tuple(args))
        self._inputs = [_like(x) for x in leaves]
        parameters = owner.parameters() if torch.is_grad_enabled() else ()
        learned = [p for p in parameters if p.requires_grad]
        # Aliases, whose autograd nodes belong to the stream of the capture, whatever else uses the
        # parameters: those of the parameters themselves may be another stream's.
        aliases = {p: p.detach().requires_grad_() for p in learned}
        self._all_grads = grads
        self._forward = torch.cuda.CUDAGraph()
        with _aliased(owner, aliases), _graph(self._forward, pool), _no_cache():
            result = function(*tree_unflatten(self._inputs, spec))
        outputs, self._spec = tree_flatten(result)
        if not all(isinstance(y, Tensor) and y.is_cuda for y in outputs):
            raise CaptureError('it returns other things than tensors on the GPU')
        self._outputs = [y.detach() for y in outputs]
        self._learning = [y.requires_grad for y in outputs]
        self._parameters: list[nn.Parameter] = []
        self._grad_outputs: list[Tensor] = []
        self._backward: torch.cuda.CUDAGraph | None = None
        self._call: Callable[[], _Call | None] = lambda: None
        if any(self._learning):
            self._capture_backward(outputs, aliases, pool)

    def _capture_backward(
        self,
        outputs: list[Tensor],
        aliases: dict[nn.Parameter, Tensor],
        pool: tuple[int, int],
    ) -> None:
        outputs = [y for y in outputs if y.requires_grad]
        sources = [x for x in self._inputs if x.requires_grad] + list(aliases.values())
        if strangers := _leaves(outputs) - {id(x) for x in sources}:
            raise CaptureError(
                f'it uses {len(strangers)} parameters that are no part of it; name a larger part'
            )
        self._grad_outputs = [torch.empty_like(y) for y in outputs]
        self._backward = torch.cuda.CUDAGraph()
        # Backward passes run outside of autocast.
        with torch.autocast('cuda', enabled=False), _graph(self._backward, pool):
            found = torch.autograd.grad(outputs, sources, self._grad_outputs, allow_unused=True)
            found = iter(_apart(found, self._grad_outputs))
            self._grad_inputs = [next(found) if x.requires_grad else None for x in self._inputs]
            new = {(p, g.stride()): g for p, g in zip(aliases, found, strict=True) if g is not None}
            known = self._all_grads.keys() & new.keys()
            if known:  # one place for the gradients of all shapes
                torch._foreach_copy_(
                    [self._all_grads[key] for key in known], [new[key] for key in known]
                )
        self._all_grads.update({key: g for key, g in new.items() if key not in known})
        self._parameters = [parameter for parameter, _ in new]
        self._grads = [self._all_grads[key] for key in new]

    def buffer_bytes(self) -> int:
        """Returns the memory of what the host copies to, which is none of the pool's."""
        return sum(x.nbytes for x in (*self._inputs, *self._grad_outputs))

    def is_pending(self) -> bool:
        """Tells whether a call waits for its backward pass, which needs what the graph wrote."""
        call = self._call()
        return call is not None and not call.was_differentiated

    def __call__(self, *args):
        """Computes the function by its graph.

        Outputs without gradient, and small ones, are copies. Others are the graph's own, for the
        next call to overwrite.
        """
        leaves, _ = tree_flatten(args)
        if self._backward is None:
            self._replay_forward(leaves)
            return tree_unflatten([y.clone() for y in self._outputs], self._spec)
        return tree_unflatten(_Replay.apply(self, *leaves, *self._parameters), self._spec)

    def _replay_forward(self, inputs: Sequence[Tensor]) -> None:
        # What autograd took over as the gradient of an earlier call is in the memory of the graphs.
        for (parameter, _), grad in self._all_grads.items():
            held = parameter.grad
            if held is not None and held.data_ptr() == grad.data_ptr():
                parameter.grad = held.clone()
        with torch.no_grad():
            for mine, given in zip(self._inputs, inputs, strict=True):
                mine.copy_(given, non_blocking=True)
        self._forward.replay()

    def _replay_backward(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Returns the gradients of inputs and parameters, in the graph's own memory."""
        given = [g for g, learns in zip(grads, self._learning, strict=True) if learns]
        for mine, grad in zip(self._grad_outputs, given, strict=True):
            mine.zero_() if grad is None else mine.copy_(grad)
        self._backward.replay()
        return [g if g is None else g.detach() for g in (*self._grad_inputs, *self._grads)]


class _Call:
    """A call that may be differentiated once; it lives as long as its node of autograd does."""

    def __init__(self):
        self.was_differentiated = False


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, capture: Capture, *tensors: Tensor):
        ctx.set_materialize_grads(False)
        ctx.capture, ctx.call = capture, _Call()
        inputs = tensors[: len(capture._inputs)]
        ctx.keeps = [x.is_leaf for x in inputs]  # whose gradients outlive the backward pass
        capture._replay_forward(inputs)
        capture._call = weakref.ref(ctx.call)
        outputs = [y.clone() if y.numel() <= SMALL else y.detach() for y in capture._outputs]
        ctx.mark_non_differentiable(
            *(y for y, learns in zip(outputs, capture._learning, strict=True) if not learns)
        )
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor | None):
        if ctx.call.was_differentiated:
            raise RuntimeError(
                'a call of a CUDA graph can be differentiated once: its backward pass has reused '
                'the memory of what it needs. Take the CUDAGraphHook out, or that part of it'
            )
        ctx.call.was_differentiated = True
        found = ctx.capture._replay_backward(grads)
        for i, keeps in enumerate(ctx.keeps):
            if keeps and found[i] is not None:
                found[i] = found[i].clone()
        return None, *found


def recover() -> None:
    """Makes a GPU usable again after a capture that failed.

    CUDA has ended that capture; torch's random numbers still wait for its end, which that of
    another one is as well.
    """
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with _graph(graph, torch.cuda.graph_pool_handle()):
        torch.empty(1, device='cuda').zero_()


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x).copy_(x.detach()).requires_grad_(x.requires_grad)


@contextmanager
def _graph(graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> Iterator[None]:
    stream = torch.cuda.current_stream()
    try:
        # Other threads go on pinning memory for batches, and asking for the end of collectives.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode='thread_local'):
            yield
    finally:
        torch.cuda.set_stream(stream)  # which torch leaves out where a capture fails


def _no_cache():
    """Keeps autocast's casts of weights from being those of another call, or used by one."""
    if not torch.is_autocast_enabled('cuda'):
        return nullcontext()
    dtype = torch.get_autocast_dtype('cuda')
    return torch.autocast('cuda', dtype, cache_enabled=False)


@contextmanager
def _aliased(owner: nn.Module, aliases: dict[nn.Parameter, Tensor]) -> Iterator[None]:
    """Has the modules of `owner` use aliases of their parameters."""
    places = [
        (module._parameters, name, parameter)
        for module in owner.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter in aliases
    ]
    try:
        for parameters, name, parameter in places:
            parameters[name] = aliases[parameter]
        yield
    finally:
        for parameters, name, parameter in places:
            parameters[name] = parameter


def _apart(grads: Iterable[Tensor | None], others: Iterable[Tensor]) -> Iterator[Tensor | None]:
    """Yields gradients, with a copy of each that shares memory with one before, or with others.

    Whoever takes one over writes to it, as clipping does.
    """
    seen = {x.untyped_storage().data_ptr() for x in others}
    for grad in grads:
        if grad is not None:
            if grad.untyped_storage().data_ptr() in seen:
                grad = grad.clone()
            seen.add(grad.untyped_storage().data_ptr())
        yield grad


def _leaves(outputs: Iterable[Tensor]) -> set[int]:
    """Returns the ids of the leaves that outputs are differentiable in."""
    nodes = [y.grad_fn for y in outputs if y.grad_fn is not None]
    leaves = {id(y) for y in outputs if y.grad_fn is None}
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if node.name() == 'torch::autograd::AccumulateGrad':
            leaves.add(id(node.variable))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)
    return leaves
