"""What maps a backbone gives, found by running it."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...errors import ConfigError, one_line


class CannotSwap(ConfigError):
    """KAT cannot stand in for a backbone; the message says why."""


class Maps(NamedTuple):
    """Channels and strides in pixels of the maps that a backbone returns."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]


def build(config: dict, scope: str | None, use: Callable[[torch.nn.Module], Any]) -> Any:
    """Returns use(model), with a model that has no memory for its weights where that works."""

    def run() -> Any:
        with DefaultScope.overwrite_default_scope(scope):
            return use(MODELS.build(copy.deepcopy(config)))

    try:
        with torch.device('meta'), _SchedulesOnCPU():
            return run()
    except Exception:  # initialisation may read values
        return run()


def probe(backbone: dict, scope: str | None) -> Maps:
    """Runs a backbone on a blank image and returns what its maps are like.

    Raises:
        CannotSwap: if it does not run here, or returns other than maps.
    """
    config = {k: v for k, v in backbone.items() if k not in ('init_cfg', 'pretrained')}
    size = config.get('img_size') or 256  # some transformers take only the size they are made for
    size = size if isinstance(size, int) else max(size)

    @torch.no_grad()
    def run(model: torch.nn.Module):
        model.eval()  # returns None for some backbones
        return model(torch.zeros(1, 3, size, size))

    name = kind(backbone)
    try:
        maps = build(config, scope, run)
    except Exception as error:  # whatever its author did not foresee
        raise CannotSwap(
            f'the backbone {name} does not run here, so its maps are unknown: {one_line(error)}'
        ) from error
    maps = (maps,) if isinstance(maps, Tensor) else maps
    for y in maps:
        if not isinstance(y, Tensor) or y.dim() != 4:
            raise CannotSwap(
                f'the backbone {name} returns more than maps [B, C, H, W]: a {type(y).__name__}'
            )
    return Maps(tuple(y.shape[1] for y in maps), tuple(round(size / y.shape[-1]) for y in maps))


class _SchedulesOnCPU(TorchFunctionMode):
    """Keeps the values of linspace, from which transformers read their drop path rates."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(
            *args, **(kwargs or {}), **({'device': 'cpu'} if func is torch.linspace else {})
        )


def kind(config: dict) -> str:
    """Returns the name of the class that a config builds."""
    value = config.get('type')
    return str(getattr(value, '__name__', value)).rpartition('.')[2]
