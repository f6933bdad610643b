"""What every attention over the tokens of a feature map has in common."""

from typing import NamedTuple

from torch import Tensor, nn

from ..checks import check_int
from ..errors import ConfigError
from .windows import Windows, attend_in_padded_windows, windows_of


class Matrices(NamedTuple):
    """What an attention makes of pairs of tokens, [B, heads, N, N] each, a row for each query.

    Attributes:
        scores: what its activation takes: scaled products of queries and keys, with any bias.
        weights: what multiplies the values; they may be negative where nothing forbids it.
    """

    scores: Tensor
    weights: Tensor


class Attention(nn.Module):
    """Mixes the tokens of a feature map, of all of it or of each of its windows.

    A new attention is a subclass with a name, in a file of this folder:

        @ATTENTIONS.register('mine')
        class MyAttention(Attention):
            def __init__(self, *owner, temperature=1.0):
                super().__init__(*owner)
                ...

            def attend(self, x, grid, mask=None): ...

    The network passes the five arguments below; all others are the config's. `project` and
    `output` work on single tokens and run once for a whole map, in any order; windows come between
    them, for every attention in the same way.

    Args:
        embed_dims: channels, a multiple of num_heads.
        num_heads: number of heads.
        grid: (h, w) of what is attended to: that of the image size that the network is made for,
            or that of a window.
        window_size: side of the square windows in tokens; 0 for all of the map.
        prefix: number of tokens in front of those of the map; windows have none.

    Raises:
        ConfigError: for a num_heads that does not divide embed_dims.

    Attributes:
        fresh: the names of its parts that the weights of a plain ViT lack; loading these leaves
            the parts as they were drawn.
        uses_order: whether `attend` takes the tokens of a whole map row by row; one that treats
            all positions alike may say False, and is spared the sorting.
    """

    fresh: tuple[str, ...] = ()
    uses_order = True

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        grid: tuple[int, int],
        window_size: int = 0,
        prefix: int = 0,
    ):
        super().__init__()
        if check_int('embed_dims', embed_dims) % check_int('num_heads', num_heads):
            raise ConfigError(
                f'num_heads={num_heads} does not divide embed_dims={embed_dims}; choose a divisor'
            )
        self.num_heads = num_heads
        self.grid = grid
        self.window_size = window_size
        self.prefix = prefix

    def project(self, x: Tensor) -> Tensor:
        """Computes what `attend` takes from tokens [B, N, embed_dims]: [B, N, any]."""
        return x

    def attend(self, x: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        """Mixes tokens [B, P + h * w, any] that `project` gave: P prefix tokens, then a map.

        Args:
            x: the tokens, those of the map row by row.
            grid: (h, w) of this map or window. Windows at the edges are smaller than self.grid;
                without windows it is that of the images, whatever their size.
            mask: [B, 1, 1, N], zero, or minus infinity for padding that must not be attended to;
                networks that are exported for images of any size pass one.

        Returns:
            [B, N, any], as `output` takes it.
        """
        raise NotImplementedError(f'{type(self).__name__} needs a method attend(x, grid, mask)')

    def matrices(self, x: Tensor, grid: tuple[int, int]) -> Matrices:
        """Computes scores and weights of tokens, to be looked at: `attend` forms neither.

        The weights times the values are what `attend` gives. Arithmetic is fp32, or fp64 for fp64.

        Args:
            x: [B, P + h * w, any], as `attend` takes it.
            grid: (h, w) of the map or of the windows.
        """
        raise NotImplementedError(f'{type(self).__name__} needs a method matrices(x, grid)')

    def output(self, y: Tensor) -> Tensor:
        """Computes the result [B, N, embed_dims] from what `attend` gave."""
        return y

    def attend_windows(self, x: Tensor, windows: Windows) -> Tensor:
        """Mixes the tokens of each window, by `attend`; an attention may have a faster way.

        Args:
            x: tokens [B, h * w, any] that `project` gave, in the order of the windows.
            windows: those of the map.

        Returns:
            [B, h * w, any] in the same order.
        """
        return windows.attend(self.attend, x)

    def forward(self, x: Tensor, grid: tuple[int, int], windows: Windows | None = None) -> Tensor:
        """Mixes tokens x [B, P + h * w, embed_dims] of a map (h, w); windows take P = 0.

        Args:
            x: the tokens, those of the map row by row.
            grid: (h, w) of the map.
            windows: if given, tokens come and go in the order of these windows, which are of this
                attention or of others in the network.
        """
        if windows is not None and not self.window_size and self.uses_order:
            return windows.order(self(windows.restore(x), grid))
        if windows is None and (own := windows_of(grid, self.window_size)) is not None:
            return own.restore(self(own.order(x), grid, own))
        x = self.project(x)
        if not self.window_size:
            y = self.attend(x, grid)
        elif windows is None:
            y = attend_in_padded_windows(self.attend, x, grid, self.window_size)
        else:
            y = self.attend_windows(x, windows)
        return self.output(y)
