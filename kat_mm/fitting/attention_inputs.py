"""What the attentions of a model attend to on samples."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from ..attention.base import Attention
from ..attention.projections import split_heads
from ..attention.windows import windows_of
from ..errors import DataError
from .runs import Samples, run

Use = Callable[[str, Tensor, Tensor, Tensor], None]  # (name, q, k, v [B, heads, N, d])


def visit(
    pairs: dict[str, tuple[Attention, Attention]],
    teacher: nn.Module,
    samples: Iterable[Samples],
    names: Sequence[str],
    use: Use,
) -> None:
    """Runs a teacher, and hands out what its attentions attend to, in fp64.

    Args:
        pairs: attentions by name: one that tells the number of tokens wanted, and the teacher's.
        teacher: the model.
        samples: its inputs.
        names: of the attentions that matter.
        use: called for each map, or batch of windows, of the size wanted, with tokens row by row.

    Raises:
        DataError: for an attention that met none.
    """
    seen: set[str] = set()
    grids: dict[str, tuple[int, int]] = {}

    def look(name, module, args):
        x, grid, *windows = args
        grids[name] = tuple(grid)
        for tokens in _whole(module, pairs[name][0].grid, x, grid, *windows):
            seen.add(name)
            qkv = split_heads(module.project(tokens), module.num_heads)
            use(name, *(t.double() for t in qkv))

    by_module = {pairs[name][1]: name for name in reversed(names)}
    with _hooks(by_module, look):
        for sample in samples:
            run(teacher, sample)
    for name in by_module.values():
        if name not in seen:
            made = pairs[name][0].grid
            raise DataError(
                f'{name}: its operator is made for {made[0]} x {made[1]} tokens, and no map or '
                f'window of samples has as many (the last map: {grids.get(name)}): give images of '
                'the size that the network is made for'
            )


@contextmanager
def _hooks(by_module: dict[nn.Module, str], look: Callable) -> Iterator[None]:
    hooks = [
        module.register_forward_pre_hook(partial(look, name)) for module, name in by_module.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _whole(module, made_for, x, grid, windows=None) -> Iterator[Tensor]:
    """Yields tokens [B, N, C], row by row, of each map or window of the size wanted."""
    if not module.window_size:
        if tuple(grid) == tuple(made_for):
            yield x if windows is None else windows.restore(x)
        return
    if windows is None:
        windows = windows_of(grid, module.window_size)
        x = windows.order(x)
    for part, tile in zip(windows.split(x), windows.tiles, strict=True):
        if tile.window == tuple(made_for):
            yield part.reshape(-1, tile.height * tile.width, x.shape[-1])
