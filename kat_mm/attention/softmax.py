"""Multi-head softmax attention with relative positions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_bool, check_probability
from ..registry import ATTENTIONS
from .base import Attention
from .mimetic import mimetic_init_
from .relative_position import relative_position_bias


@ATTENTIONS.register('softmax')
class SoftmaxAttention(Attention):
    """Computes multi-head softmax attention (ViT, arXiv 2010.11929, appendix A).

    Keys are those of timm's ViT.

    Args:
        embed_dims, num_heads, grid, window_size, prefix: as of `Attention`.
        qkv_bias: learns a bias of queries, keys and values.
        rel_pos: adds decomposed relative positions, `rel_pos_h` and `rel_pos_w`, made for `grid`,
            which start at zero; see `relative_position_bias`.
        drop: dropout probability of the output.
        mimetic: initialises by `mimetic_init_`; otherwise weights are drawn from a normal
            distribution of standard deviation 0.02, as ViTs do.

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
        super().__init__(embed_dims, num_heads, grid, window_size, prefix)
        self.mimetic = check_bool('mimetic', mimetic)
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims, bias=check_bool('qkv_bias', qkv_bias))
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.drop = nn.Dropout(check_probability('drop', drop))
        self.rel_pos_h = self.rel_pos_w = None
        if check_bool('rel_pos', rel_pos):
            head_dims = embed_dims // num_heads
            self.rel_pos_h = nn.Parameter(torch.empty(2 * grid[0] - 1, head_dims))
            self.rel_pos_w = nn.Parameter(torch.empty(2 * grid[1] - 1, head_dims))
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

    def project(self, x: Tensor) -> Tensor:
        return self.qkv(x)

    def attend(self, x: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        batch, tokens, channels = x.shape
        q, k, v = x.view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind()
        bias = mask
        if self.rel_pos_h is not None:
            # A window smaller than the others has its distances in the table. Without windows, a
            # map of another size stretches the table, as position embeddings are.
            bias = relative_position_bias(
                q, grid, self.rel_pos_h, self.rel_pos_w, stretch=not self.window_size
            )
            bias = bias if mask is None else bias + mask
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return y.transpose(1, 2).reshape(batch, tokens, channels // 3)

    def output(self, y: Tensor) -> Tensor:
        return self.drop(self.proj(y))
