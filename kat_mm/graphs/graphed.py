"""Functions that run by CUDA graphs where they can: which calls are captured, and which are not."""

import copy
import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, distributed, nn
from torch.utils._pytree import tree_leaves

from ..checks import check_int
from ..errors import ConfigError, one_line
from ..rational.torch_internals import has_dispatch_modes, has_tangents, is_tracing, is_transformed
from .capture import Capture, CaptureError, recover
from .tensors import ModuleTensors

SYNCHRONISED = ('SyncBatchNorm', 'SyncBatchNorm2d', 'MMSyncBN')
COUNTED = 1000  # shapes whose calls are counted; more than that have no use for graphs

_logger = logging.getLogger(__name__)


class Graphed:
    """A function of tensors, by CUDA graphs for inputs of shapes that come again.

    The first calls of a shape run as they are, which warms up what a capture must not meet the
    first time. So do calls with anything but tensors on a GPU, calls inside of transforms, of
    dispatch modes and of other graphs, a second call before the backward pass of the first, shapes
    beyond the limit, and all calls once a capture has failed; the last two are told once.

    Weights may be written to. Where some are replaced or move, graphs are made anew, twice at most.

    What the function does besides computing, such as to count its calls or to run hooks of modules
    inside of it, it does while it is warmed up and captured alone.

    A shape is all that makes another graph: sizes, dtypes, strides and requires_grad of inputs and
    parameters, gradient mode, autocast, determinism, and which modules are in training mode.

    Args:
        function: see `Capture`.
        owner: module that has all parameters and buffers of the function.
        name: of the function, for messages.
        warmup: calls of each shape before it is captured.
        max_shapes: graphs of training; those without gradient have as many of their own.
        capture: makes a graph, as `Capture` does.
    """

    def __init__(
        self,
        function: Callable,
        owner: nn.Module,
        name: str,
        warmup: int = 3,
        max_shapes: int = 8,
        capture: Callable = Capture,
    ):
        self.function, self.name = function, name
        self.warmup = check_int('warmup', warmup, 1)
        self.max_shapes = check_int('max_shapes', max_shapes, 1)
        self.captures: dict[Hashable, Capture] = {}
        self._owner, self._capture = owner, capture
        self._own = ModuleTensors(owner)
        self._calls: Counter[Hashable] = Counter()
        self._moves = 0
        self.pool = self._grads = None
        self._is_off = False
        self._is_full: set[bool] = set()  # of those with gradient, of those without

    def __call__(self, *args, **kwargs):
        if (
            self._is_off
            or kwargs
            or _is_observed()
            or not _can_capture(leaves := tree_leaves(args))
            or not self._have_stayed()
            or any(c.is_pending() for c in self.captures.values())
        ):
            return self.function(*args, **kwargs)
        has_grad = torch.is_grad_enabled()
        key = (has_grad, *self._state(), *map(_kind, leaves))
        if key not in self.captures and (
            self._reached_limit(has_grad, leaves)
            or not self._is_warm(key)
            or not self._make(key, args)
        ):
            return self.function(*args)
        return self.captures[key](*args)

    def __deepcopy__(self, memo: dict):
        """Copies of a model get the function alone, bound to them."""
        return copy.deepcopy(self.function, memo)

    def _state(self) -> tuple:
        is_autocast = torch.is_autocast_enabled('cuda')
        return (
            is_autocast and torch.get_autocast_dtype('cuda'),
            torch.are_deterministic_algorithms_enabled(),
            tuple(module.training for module in self._own.modules),
            tuple(tensor.requires_grad for tensor in self._own.tensors),
        )

    def _have_stayed(self) -> bool:
        """Tells whether weights are where they were; forgets the graphs if not.

        A model whose weights move again and again has no use for graphs.
        """
        if self._own.have_changed():
            if self.captures:
                self._moves += 1
                self.forget()
            if self._moves > 2:
                self._turn_off('its weights change their place in memory again and again')
                return False
        return True

    def _is_warm(self, key: Hashable) -> bool:
        """Counts a call, and tells whether there were enough before it."""
        if key not in self._calls and len(self._calls) >= COUNTED:
            del self._calls[next(iter(self._calls))]
        self._calls[key] += 1
        if self._calls[key] <= self.warmup:
            return False
        del self._calls[key]
        return True

    def _reached_limit(self, has_grad: bool, leaves: Sequence[Tensor]) -> bool:
        if sum(key[0] == has_grad for key in self.captures) < self.max_shapes:
            return False
        if has_grad not in self._is_full:
            self._is_full.add(has_grad)
            shapes = ', '.join(str(tuple(x.shape)) for x in leaves[:3])
            kind = 'training' if has_grad else 'inference'
            _logger.warning(
                '%s: %d CUDA graphs for %s are there, and inputs of yet another shape run without '
                'one, such as %s. Pad batches to few sizes, or raise max_shapes',
                *(self.name, self.max_shapes, kind, shapes),
            )
        return True

    def _make(self, key: Hashable, args: Sequence) -> bool:
        if self.pool is None:
            self.pool, self._grads = torch.cuda.graph_pool_handle(), {}
        try:
            for module in self._own.modules:
                _check(module, has_grad=key[0])
            with self._own.kept():
                capture = self._capture(self.function, self._owner, args, self.pool, self._grads)
            self.captures[key] = capture
        except Exception as error:  # as a call without a graph shows, if it is not the graph's
            reason = str(error)
            if not isinstance(error, CaptureError):
                reason = one_line(error.__context__ or error)
                recover()
            self._turn_off(reason)
            return False
        return True

    def _turn_off(self, reason: str) -> None:
        self._is_off = True
        self.forget()
        _logger.warning('%s runs without CUDA graphs: %s', self.name, reason)

    def forget(self) -> None:
        """Frees the graphs and their memory."""
        self.captures.clear()
        self._calls.clear()
        self.pool = self._grads = None


def _check(module: nn.Module, has_grad: bool) -> None:
    """Refuses what would not fail, but wait for other processes or compute something else.

    Raises:
        CaptureError: for such a module.
    """
    kind = type(module).__name__
    if has_grad and getattr(module, 'with_cp', False):
        raise CaptureError(f'{kind} has with_cp=True, which draws random numbers a second time')
    several = distributed.is_available() and distributed.is_initialized()
    if kind in SYNCHRONISED and module.training and several and distributed.get_world_size() > 1:
        raise CaptureError(f'{kind} shares statistics between processes; BN has its own in each')


def _is_observed() -> bool:
    """Tells whether anything but autograd wants to see what a call does."""
    return bool(
        torch.compiler.is_compiling()
        or is_transformed()
        or has_tangents()
        or is_tracing()
        or has_dispatch_modes()
    )


def _can_capture(leaves: Sequence) -> bool:
    return (
        bool(leaves)
        and all(type(x) is Tensor and x.is_cuda and x.layout is torch.strided for x in leaves)
        and all(x.device.index == torch.cuda.current_device() for x in leaves)
        and not torch.cuda.is_current_stream_capturing()
        and not torch.is_inference_mode_enabled()
    )


def _kind(x: Tensor) -> tuple:
    return x.shape, x.dtype, x.stride(), x.device, x.requires_grad


class GraphedParts:
    """Parts of a model that run by CUDA graphs until they are released; see `graph_parts`."""

    def __init__(self, places: Sequence[tuple[nn.Module, str, Graphed]]):
        self._places = places
        self._before = [vars(owner).get(attribute) for owner, attribute, _ in places]
        for owner, attribute, graphed in places:
            setattr(owner, attribute, graphed)

    @property
    def parts(self) -> list[Graphed]:
        return [graphed for _, _, graphed in self._places]

    def held_bytes(self) -> int:
        """Returns the memory that the graphs hold, also between their runs."""
        pools = {graphed.pool for graphed in self.parts}
        segments = torch.cuda.memory_snapshot()
        held = sum(s['total_size'] for s in segments if s['segment_pool_id'] in pools)
        captures = [c for graphed in self.parts for c in graphed.captures.values()]
        return held + sum(capture.buffer_bytes() for capture in captures)

    def release(self) -> None:
        """Gives the model its own functions back, and frees the graphs.

        What others have put in the place of a part stays there.
        """
        for (owner, attribute, graphed), before in zip(self._places, self._before, strict=True):
            graphed.forget()
            if vars(owner).get(attribute) is graphed:
                delattr(owner, attribute)
                if before is not None:
                    setattr(owner, attribute, before)


def graph_parts(
    model: nn.Module, parts: Sequence[str], warmup: int = 3, max_shapes: int = 8
) -> GraphedParts:
    """Has parts of a model run by CUDA graphs, once warm; see `Graphed`.

    Neither parameters nor keys of the state dict change.

    Args:
        model: the model.
        parts: dotted names of modules, or of methods of the model or of its modules, that take
            tensors and return tensors. Parts inside of others are run by these. One that has
            several names is one part, by the first of them.
        warmup, max_shapes: as of `Graphed`.

    Raises:
        ConfigError: for a name that is none of either.
    """
    places = {}
    for part in parts:
        path, _, last = part.rpartition('.')
        try:
            owner = model.get_submodule(path)
            function = getattr(owner, last)
        except AttributeError:
            raise ConfigError(f'parts: {type(model).__name__} has no part {part!r}') from None
        if isinstance(function, nn.Module):
            owner, last, function = function, 'forward', function.forward
        if not callable(function):
            raise ConfigError(f'parts: {part!r} is neither a module nor a method')
        if (id(owner), last) not in places:
            graphed = Graphed(function, owner, part, warmup, max_shapes)
            places[id(owner), last] = owner, last, graphed
    return GraphedParts(list(places.values()))
