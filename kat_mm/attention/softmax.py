"""Multi-head self-attention over a token map: global or windowed, with relative positions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arithmetic import ceil_div, is_symbol
from ..checks import check_int
from ..errors import ConfigError
from .mimetic import mimetic_init_
from .relative_position import relative_position_bias


class Attention(nn.Module):
    """Computes multi-head softmax attention among the tokens of a map, or of each of its windows.

    Tokens are [B, P + h * w, embed_dims]: P prefix tokens (such as a class token), then the map
    row by row. Windows tile the map from its top left corner. Where its size is no multiple of
    the window, the last window of a row or column is smaller: no padding is attended to, and no
    mask keeps the fused attention kernels from being used.

    Args:
        embed_dims: channels, a multiple of num_heads.
        num_heads: number of heads.
        window_size: side of the square windows in tokens; 0 for global attention. Windowed
            attention takes no prefix tokens.
        rel_pos_size: (h, w) that the tables of relative positions, `rel_pos_h` and `rel_pos_w`,
            are made for; None for none. They start at zero; see `relative_position_bias`.
        qkv_bias: learns a bias of queries, keys and values.
        drop: dropout probability of the output.
        mimetic: initialises by `mimetic_init_`; otherwise weights are drawn from a normal
            distribution of standard deviation 0.02, as ViTs do.

    Raises:
        ConfigError: for a num_heads that does not divide embed_dims.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        window_size: int = 0,
        rel_pos_size: tuple[int, int] | None = None,
        qkv_bias: bool = True,
        drop: float = 0.0,
        mimetic: bool = True,
    ):
        super().__init__()
        if embed_dims % check_int('num_heads', num_heads):
            raise ConfigError(
                f'num_heads={num_heads} does not divide embed_dims={embed_dims}; choose a divisor'
            )
        self.num_heads = num_heads
        self.window_size = window_size
        self.mimetic = mimetic
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims, bias=qkv_bias)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.drop = nn.Dropout(drop)
        self.rel_pos_h = self.rel_pos_w = None
        if rel_pos_size is not None:
            head_dims = embed_dims // num_heads
            self.rel_pos_h = nn.Parameter(torch.empty(2 * rel_pos_size[0] - 1, head_dims))
            self.rel_pos_w = nn.Parameter(torch.empty(2 * rel_pos_size[1] - 1, head_dims))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights anew, with zero biases and relative positions."""
        for table in (self.rel_pos_h, self.rel_pos_w):
            if table is not None:
                nn.init.zeros_(table)
        if self.mimetic:
            mimetic_init_(self.qkv, self.proj, self.num_heads)
            return
        for linear in (self.qkv, self.proj):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        qkv = self.qkv(x)
        y = self._windows(qkv, grid) if self.window_size else self._attend(qkv, grid)
        return self.drop(self.proj(y))

    def _attend(self, qkv: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        """Attention among all tokens of qkv [B, N, 3 C]; returns [B, N, C].

        A mask [B, 1, 1, N] is added to the logits.
        """
        batch, tokens, channels = qkv.shape
        q, k, v = qkv.view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind()
        bias = mask
        if self.rel_pos_h is not None:
            # A window smaller than the others has its distances in the table. Global attention
            # over a map of another size stretches the table, as position embeddings are.
            bias = relative_position_bias(
                q, grid, self.rel_pos_h, self.rel_pos_w, stretch=not self.window_size
            )
            bias = bias if mask is None else bias + mask
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return y.transpose(1, 2).reshape(batch, tokens, channels // 3)

    def _windows(self, qkv: Tensor, grid: tuple[int, int]) -> Tensor:
        """Attention within windows of qkv [B, h * w, 3 C]; returns [B, h * w, C].

        Whole windows and the smaller ones at the right and bottom edges make up to four tiles.
        """
        h, w = grid
        x = qkv.view(-1, h, w, qkv.shape[-1])
        if is_symbol(h + w):
            return self._padded_windows(x).flatten(1, 2)
        bands = []
        for band in x.split(_tile_sizes(h, self.window_size), 1):
            tiles = band.split(_tile_sizes(w, self.window_size), 2)
            bands.append(_concatenate([self._attend_tile(tile) for tile in tiles], 2))
        return _concatenate(bands, 1).flatten(1, 2)

    def _padded_windows(self, x: Tensor) -> Tensor:
        """Attention within the windows of a map x [B, h, w, 3 C]; returns [B, h, w, C].

        For sizes that are symbols, as these do not tell which smaller windows there are: the map is
        padded to whole ones, and a mask keeps the padding from being attended to.
        """
        (h, w), s = x.shape[1:3], self.window_size
        padding = (0, ceil_div(w, s) * s - w, 0, ceil_div(h, s) * s - h)
        mask = F.pad(x.new_zeros(h, w), padding, value=-torch.inf)
        return self._attend_tile(F.pad(x, (0, 0, *padding)), mask)[:, :h, :w]

    def _attend_tile(self, tile: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention within the equal windows of a tile [B, th, tw, 3 C]; returns [B, th, tw, C].

        A mask [th, tw], which a tile of whole windows may have, is added to the keys' logits.
        """
        batch, h, w, _ = tile.shape
        sh = sw = self.window_size
        if mask is None:
            sh, sw = min(h, sh), min(w, sw)
        else:
            mask = mask.view(h // sh, sh, w // sw, sw).transpose(1, 2).reshape(-1, 1, 1, sh * sw)
            mask = mask.repeat(batch, 1, 1, 1)
        windows = tile.view(batch, h // sh, sh, w // sw, sw, -1).transpose(2, 3)
        y = self._attend(windows.reshape(-1, sh * sw, tile.shape[-1]), (sh, sw), mask)
        y = y.view(batch, h // sh, w // sw, sh, sw, -1).transpose(2, 3)
        return y.reshape(batch, h, w, -1)


def _tile_sizes(length: int, window: int) -> list[int]:
    """Splits a length into what whole windows cover and the rest, leaving out what is empty."""
    rest = length % window
    return [size for size in (length - rest, rest) if size]


def _concatenate(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


ATTENTIONS: dict[str, type[nn.Module]] = {'softmax': Attention}
