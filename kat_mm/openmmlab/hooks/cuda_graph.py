"""Training and testing without waiting for the host: parts of a model as CUDA graphs."""

from collections.abc import Sequence

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from torch import nn

from ...checks import check_int
from ...errors import ConfigError
from ...graphs import GraphedParts, graph_parts


@HOOKS.register_module()
class CUDAGraphHook(Hook):
    """Has parts of a model run by CUDA graphs, forward and backward, once they are warm.

    A graph is one call of the host, where a step has thousands: it pays where the GPU waits for
    the host. It serves inputs of one shape, and holds its memory for good; see
    `kat_mm.graphs.Graphed` for what runs without. Results, weights and checkpoints are those of a
    run without the hook. Without a GPU it does nothing.

    Use it as `custom_hooks=[dict(type='CUDAGraphHook')]`.

    Args:
        parts: dotted names of modules or methods of the model that take and return tensors. By
            default what the model names as `graph_parts`, as FusedEncoderDecoder does; or else
            its `extract_feat`, and the decode heads of a segmentor.
        warmup: calls of each shape before it is captured.
        max_shapes: graphs of each part, for training; testing has as many of its own.

    Raises:
        ConfigError: for a part that the model lacks.
    """

    def __init__(self, parts: Sequence[str] | None = None, warmup: int = 3, max_shapes: int = 8):
        if isinstance(parts, str):
            raise ConfigError(f'CUDAGraphHook: parts={parts!r} must be a list of names')
        self.parts = parts
        self.warmup = check_int('warmup', warmup)
        self.max_shapes = check_int('max_shapes', max_shapes)
        self.graphed: GraphedParts | None = None

    def before_train(self, runner) -> None:
        self._start(runner)

    def before_test(self, runner) -> None:
        self._start(runner)

    def after_train(self, runner) -> None:
        self._stop()

    def after_test(self, runner) -> None:
        self._stop()

    def _start(self, runner) -> None:
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        parts = default_parts(model) if self.parts is None else self.parts
        if torch.cuda.is_available():
            self.graphed = graph_parts(model, parts, self.warmup, self.max_shapes)

    def _stop(self) -> None:
        if self.graphed:
            self.graphed.release()
        self.graphed = None


def default_parts(model: nn.Module) -> list[str]:
    """Returns the names of what of a model can run by graphs.

    Raises:
        ConfigError: for a model that has nothing of the kind.
    """
    if own := getattr(model, 'graph_parts', ()):
        return list(own)
    if not hasattr(model, 'extract_feat'):
        raise ConfigError(
            f'CUDAGraphHook: {type(model).__name__} has no extract_feat; name the parts to run by '
            "graphs, such as parts=['backbone']"
        )
    parts = ['extract_feat']
    for name in ('decode_head', 'auxiliary_head'):
        head = getattr(model, name, None)
        if isinstance(head, nn.ModuleList):
            parts += [f'{name}.{i}' for i in range(len(head))]
        elif head is not None:
            parts.append(name)
    return parts
