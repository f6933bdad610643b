"""What attentions of queries, keys and values have in common."""

import torch
from torch import Tensor, nn

from ..checks import check_bool, check_probability
from ..rational.linear import linear
from .base import Attention
from .mimetic import mimetic_init_


class ProjectedAttention(Attention):
    """Projects tokens to queries, keys and values, and what comes of them to the result.

    The keys of its weights are those of timm's ViT.

    Args:
        embed_dims, num_heads, grid, window_size, prefix: as of `Attention`.
        qkv_bias: learns a bias of queries, keys and values.
        drop: dropout probability of the output.
        mimetic: initialises by `mimetic_init_`; otherwise weights are drawn from a normal
            distribution of standard deviation 0.02, as ViTs do.

    Raises:
        ConfigError: for values of the wrong kind or range.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        grid: tuple[int, int],
        window_size: int = 0,
        prefix: int = 0,
        qkv_bias: bool = True,
        drop: float = 0.0,
        mimetic: bool = True,
    ):
        super().__init__(embed_dims, num_heads, grid, window_size, prefix)
        self.mimetic = check_bool('mimetic', mimetic)
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims, bias=check_bool('qkv_bias', qkv_bias))
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.drop = nn.Dropout(check_probability('drop', drop))

    def reset_parameters(self) -> None:
        """Draws the weights anew, with zero biases."""
        if self.mimetic:
            mimetic_init_(self.qkv, self.proj, self.num_heads)
            return
        for layer in (self.qkv, self.proj):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def project(self, x: Tensor) -> Tensor:
        return linear(x, self.qkv)

    def output(self, y: Tensor) -> Tensor:
        return self.drop(linear(y, self.proj))


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns queries, keys and values [B, heads, N, dims] of [B, N, 3 * heads * dims]."""
    return qkv.unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()


def scaled_products(q: Tensor, k: Tensor) -> Tensor:
    """Computes the scores q k^T / sqrt(d) of [B, heads, N, d] in fp32, or in fp64 for fp64."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        return q.to(dtype) * q.shape[-1] ** -0.5 @ k.to(dtype).mT


def join_heads(y: Tensor) -> Tensor:
    """Returns tokens [B, N, heads * dims] of [B, heads, N, dims]."""
    return y.transpose(1, 2).flatten(2)
