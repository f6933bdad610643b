"""The MLP of a plain ViT, the twin of the GR-KAN layer in comparisons."""

from torch import Tensor, nn


class Mlp(nn.Module):
    """Computes fc2(gelu(fc1(x))) on x [..., embed_dims] (ViT, arXiv 2010.11929, section 3.1).

    Keys are those of timm's ViT. Weights are drawn from a normal distribution of standard
    deviation 0.02 cut at 2, as ViTs are; biases are zero.
    """

    def __init__(self, embed_dims: int, feedforward_channels: int, ffn_drop: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(embed_dims, feedforward_channels)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(feedforward_channels, embed_dims)
        self.drop = nn.Dropout(ffn_drop) if ffn_drop else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights anew."""
        for fc in (self.fc1, self.fc2):
            nn.init.trunc_normal_(fc.weight, std=0.02)
            nn.init.zeros_(fc.bias)

    def forward(self, x: Tensor, norm: nn.LayerNorm | None = None) -> Tensor:
        """Computes the MLP, of norm(x) where a layer norm is given."""
        x = x if norm is None else norm(x)
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
