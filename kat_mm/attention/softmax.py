"""Multi-head softmax attention with relative positions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_bool
from ..registry import ATTENTIONS
from .base import Matrices
from .flash import flash_attention
from .projections import ProjectedAttention, join_heads, scaled_products, split_heads
from .relative_position import relative_position_bias
from .windows import Windows


@ATTENTIONS.register('softmax')
class SoftmaxAttention(ProjectedAttention):
    """Computes multi-head softmax attention (ViT, arXiv 2010.11929, appendix A).

    Keys are those of timm's ViT.

    Args:
        embed_dims, num_heads, grid, window_size, prefix: as of `Attention`.
        qkv_bias, drop, mimetic: as of `ProjectedAttention`.
        rel_pos: adds decomposed relative positions, `rel_pos_h` and `rel_pos_w`, made for `grid`,
            which start at zero; see `relative_position_bias`.

    Raises:
        ConfigError: for values of the wrong kind or range.
    """

    fresh = 'rel_pos_h', 'rel_pos_w'

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        grid: tuple[int, int],
        window_size: int = 0,
        prefix: int = 0,
        qkv_bias: bool = True,
        rel_pos: bool = False,
        drop: float = 0.0,
        mimetic: bool = True,
    ):
        super().__init__(
            *(embed_dims, num_heads, grid, window_size, prefix), *(qkv_bias, drop, mimetic)
        )
        self.rel_pos_h = self.rel_pos_w = None
        if check_bool('rel_pos', rel_pos):
            head_dims = embed_dims // num_heads
            self.rel_pos_h = nn.Parameter(torch.empty(2 * grid[0] - 1, head_dims))
            self.rel_pos_w = nn.Parameter(torch.empty(2 * grid[1] - 1, head_dims))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights anew, with zero biases and relative positions."""
        super().reset_parameters()
        for table in (self.rel_pos_h, self.rel_pos_w):
            if table is not None:
                nn.init.zeros_(table)

    @property
    def uses_order(self) -> bool:
        return self.rel_pos_h is not None

    def attend(self, x: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        if self.rel_pos_h is None:
            return softmax_attention(x, self.num_heads, mask)
        q, k, v = split_heads(x, self.num_heads)
        bias = self._bias(q, grid)
        bias = bias if mask is None else bias + mask
        return join_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=bias))

    def matrices(self, x: Tensor, grid: tuple[int, int]) -> Matrices:
        q, k, _ = split_heads(x, self.num_heads)
        scores = scaled_products(q, k)
        if self.rel_pos_h is not None:
            scores = scores + self._bias(q, grid).to(scores.dtype)
        return Matrices(scores, scores.softmax(-1))

    def _bias(self, q: Tensor, grid: tuple[int, int]) -> Tensor:
        # A window smaller than the others has its distances in the table. Without windows, a
        # map of another size stretches the table, as position embeddings are.
        return relative_position_bias(
            q, grid, self.rel_pos_h, self.rel_pos_w, stretch=not self.window_size
        )

    def attend_windows(self, x: Tensor, windows: Windows) -> Tensor:
        if self.rel_pos_h is None:
            y = flash_attention(x, self.num_heads, windows)
            if y is not None:
                return y
        return super().attend_windows(x, windows)


def softmax_attention(qkv: Tensor, num_heads: int, mask: Tensor | None = None) -> Tensor:
    """Computes softmax attention [B, N, C] of queries, keys and values [B, N, 3 * C].

    A mask [B, 1, 1, N] is added to the logits.
    """
    if mask is None:
        y = flash_attention(qkv, num_heads)
        if y is not None:
            return y
    y = F.scaled_dot_product_attention(*split_heads(qkv, num_heads), attn_mask=mask)
    return join_heads(y)
