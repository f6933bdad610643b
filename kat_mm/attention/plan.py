"""Which attention each block of a network has: windows, global blocks, shared parts."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import nn

from ..arithmetic import ceil_div
from ..checks import check_indices, check_int
from ..errors import ConfigError
from ..registry import ATTENTIONS, Config
from .base import Attention

OWN = 5  # arguments that an attention is given by the network
OPTIONS = ('window_size', 'global_blocks', 'global_attention', 'shared')


class Plan(NamedTuple):
    """What `attention` of a network says.

    Attributes:
        config: the attention of windowed blocks, or of all without windows.
        global_config: that of blocks that attend globally.
        window_size: side of the windows in tokens; 0 without.
        global_blocks: the blocks that attend globally.
        shared: the parts that all blocks of one kind share, or True for the whole attention.
    """

    config: dict
    global_config: dict
    window_size: int
    global_blocks: tuple[int, ...]
    shared: bool | tuple[str, ...]


def plan_attention(attention: Config, depth: int) -> Plan:
    """Reads the `attention` of a network of `depth` blocks; see `KAT` for its options.

    Raises:
        ConfigError: for an unknown type, and for options of the wrong kind or range.
    """
    config = ATTENTIONS.config(attention)
    ATTENTIONS.check(config, OWN, OPTIONS)
    options = {name: config.pop(name) for name in OPTIONS if name in config}
    window_size = check_int('attention.window_size', options.get('window_size', 0), 0)
    blocks = options.get('global_blocks')
    if blocks is None:
        blocks = {ceil_div(depth * quarter, 4) - 1 for quarter in (1, 2, 3, 4)}
    blocks = check_indices('attention.global_blocks', blocks, depth, 'blocks')
    global_attention = options.get('global_attention')
    if global_attention is not None and not window_size:
        raise ConfigError(
            'attention.global_attention needs attention.window_size: without windows all blocks '
            'attend globally, by the attention itself'
        )
    if not window_size or len(blocks) == depth:
        window_size, blocks = 0, tuple(range(depth))
    global_config = config if global_attention is None else ATTENTIONS.config(global_attention)
    shared = options.get('shared', False)
    if not isinstance(shared, bool):
        names = (shared,) if isinstance(shared, str) else shared
        if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
            raise ConfigError(
                f'attention.shared={shared!r} must be True, or the names of parts of the attention'
            )
        shared = tuple(names)
    return Plan(config, global_config, window_size, blocks, shared)


def build_attentions(
    plan: Plan, depth: int, embed_dims: int, num_heads: int, grid: tuple[int, int], prefix: int
) -> Iterator[Attention]:
    """Builds the attention of each block in turn; a shared one is one module in several places."""
    first: dict[bool, Attention] = {}
    for i in range(depth):
        is_global = i in plan.global_blocks
        if plan.shared is True and is_global in first:
            yield first[is_global]
            continue
        size = 0 if is_global else plan.window_size
        attention = ATTENTIONS.build(
            plan.global_config if is_global else plan.config,
            *(embed_dims, num_heads, (size, size) if size else grid, size, prefix),
        )
        first.setdefault(is_global, attention)
        if plan.shared and plan.shared is not True:
            _share(first[is_global], attention, plan.shared)
        yield attention


def _share(source: nn.Module, module: nn.Module, names: Sequence[str]) -> None:
    for name in names:
        if not isinstance(getattr(source, name, None), nn.Module | nn.Parameter):
            parts = dict.fromkeys(key.partition('.')[0] for key, _ in source.named_parameters())
            raise ConfigError(
                f'attention.shared: {type(source).__name__} has no part {name!r} with parameters; '
                f'it has {", ".join(parts)}'
            )
        setattr(module, name, getattr(source, name))
