"""Losses that stay on the GPU until they are logged: to read one makes the host wait for its step.

A host that waits gives the GPU its next step late.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import torch
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from ...checks import check_int

Terms = Mapping[str, Tensor | float]


class _Kind(NamedTuple):
    """What tensors have in common that are kept in one."""

    dtype: torch.dtype
    device: torch.device


class DeferredTerms:
    """Numbers by iteration, read some iterations at a time.

    Args:
        interval: iterations that may wait at most. By default what is on a GPU waits for the
            next line of the log, all else for nothing.
    """

    def __init__(self, interval: int | None = None):
        self.interval = interval if interval is None else check_int('interval', interval)
        self._held: list[tuple[int, dict[str, _Kind | float]]] = []
        self._values: dict[_Kind, list[Tensor]] = defaultdict(list)  # of all terms that are tensors
        self._is_on_gpu = False

    def add(self, iteration: int, terms: Terms) -> None:
        """Keeps the terms of an iteration, tensors of one element or numbers.

        Tensors are copied, since a model may write to its own: all of a kind by one kernel.
        """
        held, kinds = dict(terms), defaultdict(list)
        for name, value in terms.items():
            if isinstance(value, Tensor):
                held[name] = kind = _Kind(value.dtype, value.device)
                kinds[kind].append(value.detach().reshape(()))
        for kind, values in kinds.items():
            self._values[kind].append(torch.stack(values))
        self._is_on_gpu = any(kind.device.type == 'cuda' for kind in kinds)
        self._held.append((iteration, held))

    def is_due(self, runner, batch_idx: int) -> bool:
        """Tells whether what waits is to be read after this iteration of training."""
        logger = next((hook for hook in runner.hooks if isinstance(hook, LoggerHook)), None)
        at_most = self.interval or (logger.interval if logger and self._is_on_gpu else 1)
        return (
            len(self._held) >= at_most
            or (logger is not None and (batch_idx + 1) % logger.interval == 0)
            or batch_idx + 1 == len(runner.train_dataloader)
        )

    def read(self) -> list[tuple[int, dict[str, float]]]:
        """Returns all that waits, in order, and forgets it; the host waits for the GPU once."""
        held, self._held = self._held, []
        numbers = {kind: iter(torch.cat(v).tolist()) for kind, v in self._values.items()}
        self._values.clear()
        return [
            (
                iteration,
                {k: next(numbers[v]) if isinstance(v, _Kind) else v for k, v in terms.items()},
            )
            for iteration, terms in held
        ]


@HOOKS.register_module()
class DeferredRuntimeInfoHook(RuntimeInfoHook):
    """mmengine's RuntimeInfoHook, which reads losses of a GPU, and norms of gradients, in time.

    They get into the message hub before each line of the log, evaluation and checkpoint, all of
    them and in order. mmengine's reads them in each iteration. Use it as
    `default_hooks=dict(runtime_info=dict(type='DeferredRuntimeInfoHook'))`.

    Args:
        interval: iterations that losses wait at most; by default, those of a GPU wait for the log.
    """

    def __init__(self, interval: int | None = None):
        super().__init__()
        self._terms = DeferredTerms(interval)
        self._norm: Tensor | None = None

    def before_train(self, runner) -> None:
        super().before_train(runner)
        wrapper = runner.optim_wrapper
        # An OptimWrapperDict has none of these; its wrappers read their norms themselves.
        clips = isinstance(wrapper, OptimWrapper) and getattr(wrapper, 'clip_grad_kwargs', None)
        names_norm = hasattr(wrapper, 'grad_name')
        if clips and names_norm and getattr(wrapper, 'clip_func', None) is clip_grad_norm_:
            wrapper.clip_func = self._clip

    def _clip(self, *args, **kwargs) -> None:
        """Clips gradients, and keeps their norm, which OptimWrapper would read at once."""
        self._norm = clip_grad_norm_(*args, **kwargs)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        terms = dict(outputs or {})
        if self._norm is not None:
            terms[runner.optim_wrapper.grad_name], self._norm = self._norm, None
        self._terms.add(runner.iter, terms)
        if self._terms.is_due(runner, batch_idx):
            self._read(runner)

    def before_val(self, runner) -> None:
        self._read(runner)
        super().before_val(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        self._read(runner)
        if 'message_hub' in checkpoint:  # as it was before
            checkpoint['message_hub'] = runner.message_hub.state_dict()

    def after_train(self, runner) -> None:
        self._read(runner)
        super().after_train(runner)

    def _read(self, runner) -> None:
        for _, terms in self._terms.read():
            for name, value in terms.items():
                runner.message_hub.update_scalar(f'train/{name}', value)
