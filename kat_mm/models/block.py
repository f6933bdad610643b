"""The transformer block of KAT."""

from functools import partial

import torch
from torch import Tensor, nn

from ..attention.windows import Windows
from ..errors import ConfigError

# The layer norms of ViTs, whose epsilon is not torch's default.
layer_norm = partial(nn.LayerNorm, eps=1e-6)


class Block(nn.Module):
    """Computes x + attn(norm1(x)), then x + mlp(norm2(x)) (KAT, arXiv 2409.10594, section 4).

    x is [B, N, embed_dims] and so is the result. Each branch may be scaled per channel and
    dropped per image. Names are those of timm's ViT block.

    Args:
        embed_dims: channels.
        attn: module called with the normed tokens, the (h, w) of their map and, if the network
            gives them, the windows that the tokens are sorted by.
        mlp: module called with the normed tokens; see `kat_mm.models.ffn`.
        layer_scale: initial scale of both branches (CaiT, arXiv 2103.17239, section 3); None
            for none.
        drop_path: probability of dropping each branch.
    """

    def __init__(
        self,
        embed_dims: int,
        attn: nn.Module,
        mlp: nn.Module,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ):
        super().__init__()

        def scale() -> nn.Module:
            return nn.Identity() if layer_scale is None else LayerScale(embed_dims, layer_scale)

        self.norm1 = layer_norm(embed_dims)
        self.attn = attn
        self.ls1 = scale()
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = layer_norm(embed_dims)
        self.mlp = mlp
        self.ls2 = scale()
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor, grid: tuple[int, int], *windows: Windows) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), grid, *windows)))
        return x + self.drop_path2(self.ls2(feed_forward(self.mlp, self.norm2, x)))


def feed_forward(mlp: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """Computes mlp(norm(x)); a layer that fuses the norm into a kernel of its own is given it."""
    if getattr(mlp, 'fuses_norm', False):
        return mlp(x, norm=norm)
    return mlp(norm(x))


class LayerScale(nn.Module):
    """Multiplies each channel of x [..., channels] by a learned scale."""

    def __init__(self, channels: int, init_value: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), float(init_value)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """Zeroes x [B, ...] for each image with probability `prob` while training.

    What remains is divided by 1 - prob, which keeps the mean (stochastic depth,
    arXiv 1603.09382).
    """

    def __init__(self, prob: float = 0.0):
        super().__init__()
        if not 0 <= prob < 1:
            raise ConfigError(f'drop path probability must lie in [0, 1), got {prob}')
        self.prob = prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.prob:
            return x
        keep = 1 - self.prob
        mask = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(keep)
        return x * mask.div_(keep)

    def extra_repr(self) -> str:
        return f'prob={self.prob:.3g}'
