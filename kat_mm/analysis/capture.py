"""The attention matrices of a network on images."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..attention import Attention
from ..attention.base import Matrices
from ..attention.softmax import SoftmaxAttention
from ..attention.windows import Windows, windows_of

LABELS = {SoftmaxAttention: 'softmax'}


class Part(NamedTuple):
    """The matrices of windows of one size, or of a whole map.

    Attributes:
        matrices: of each window of each image, an image's windows one after the other.
        corners: (y, x) in tokens of the first token of each window of an image.
        size: (h, w) of a window in tokens.
    """

    matrices: Matrices
    corners: list[tuple[int, int]]
    size: tuple[int, int]


class Attended(NamedTuple):
    """What the attention of a block took: its matrices are computed when they are asked for.

    Attributes:
        name: of the attention in the model.
        attention: the module.
        tokens: [B, P + h * w, channels], in the order of the windows if there are any.
        grid: (h, w) of the map.
        windows: those that it attends within.
    """

    name: str
    attention: Attention
    tokens: Tensor
    grid: tuple[int, int]
    windows: Windows | None

    @property
    def prefix(self) -> int:
        """Number of tokens in front of those of the map."""
        return self.tokens.shape[1] - self.grid[0] * self.grid[1]

    @property
    def label(self) -> str:
        """What pictures call the attention."""
        if getattr(self.attention, 'gate', None) is not None:
            return f'softmax + gated {type(self.attention).__name__}'
        return LABELS.get(type(self.attention), type(self.attention).__name__)

    @torch.no_grad()
    def parts(self) -> Iterator[Part]:
        """Yields the matrices of the windows of each size, the whole ones first."""
        x = self.attention.project(self.tokens)
        if self.windows is None:
            yield Part(self.attention.matrices(x, self.grid), [(0, 0)], self.grid)
            return
        top, tiles = 0, iter(zip(self.windows.split(x), self.windows.tiles, strict=True))
        for height in self.windows.heights:
            left = 0
            for width in self.windows.widths:
                part, tile = next(tiles)
                part = part.reshape(-1, tile.height * tile.width, part.shape[-1])
                corners = [
                    (top + row * tile.height, left + column * tile.width)
                    for row in range(tile.rows)
                    for column in range(tile.columns)
                ]
                yield Part(self.attention.matrices(part, tile.window), corners, tile.window)
                left += width
            top += height

    def rows(self, queries: Sequence[tuple[int, int]], image: int = 0) -> Tensor:
        """Computes with what weights tokens of an image attend to all of its map.

        Args:
            queries: (y, x) of the tokens.
            image: which of the batch.

        Returns:
            [queries, heads, h, w]: NaN outside a token's window. Prefix tokens are left out.
        """
        result = self.tokens.new_full(
            (len(queries), self.attention.num_heads, *self.grid), torch.nan, dtype=torch.float64
        )
        for (_, weights), corners, (h, w) in self.parts():
            for i, (y, x) in enumerate(queries):
                for j, (top, left) in enumerate(corners):
                    if not (top <= y < top + h and left <= x < left + w):
                        continue
                    token = self.prefix + (y - top) * w + x - left
                    row = weights[image * len(corners) + j, :, token, self.prefix :]
                    result[i, :, top : top + h, left : left + w] = row.unflatten(-1, (h, w))
        return result


def attended(model: nn.Module, run: Callable[[], object]) -> list[Attended]:
    """Returns what each attention of a model took while `run` ran, in the order of the calls.

    A module that serves several blocks is there once for each of them.
    """
    names = {module: name for name, module in model.named_modules()}
    result, inside = [], set()

    def before(module: Attention, args: tuple, kwargs: dict) -> None:
        if module not in inside:  # an attention may call itself with another order of tokens
            inside.add(module)
            result.append(_attended(names[module], module, *args, **kwargs))

    def after(module: Attention, *_) -> None:
        inside.discard(module)

    handles = []
    try:
        for module in names:
            if isinstance(module, Attention):
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(module.register_forward_hook(after))
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return result


def _attended(
    name: str,
    attention: Attention,
    x: Tensor,
    grid: tuple[int, int],
    windows: Windows | None = None,
) -> Attended:
    """Sorts the tokens as the attention attends to them: by its windows, or row by row."""
    if windows is not None and not attention.window_size:
        x, windows = windows.restore(x), None
    elif windows is None and (own := windows_of(grid, attention.window_size)) is not None:
        x, windows = own.order(x), own
    return Attended(name, attention, x.detach(), tuple(grid), windows)
