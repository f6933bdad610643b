"""The MLP of a plain ViT, the twin of the GR-KAN layer in comparisons."""

from torch import Tensor, nn

from ...checks import check_int, check_probability
from ...registry import FFNS


@FFNS.register('mlp')
class Mlp(nn.Module):
    """Computes fc2(gelu(fc1(x))) on x [..., embed_dims] (ViT, arXiv 2010.11929, section 3.1).

    Keys are those of timm's ViT. Weights are drawn from a normal distribution of standard
    deviation 0.02 cut at 2, as ViTs are; biases are zero.

    Args:
        embed_dims: channels of input and output.
        hidden_channels: channels between the linear layers.
        drop: dropout probability behind fc1 and fc2.
    """

    def __init__(self, embed_dims: int, hidden_channels: int, drop: float = 0.0):
        super().__init__()
        check_int('embed_dims', embed_dims)
        self.fc1 = nn.Linear(embed_dims, check_int('hidden_channels', hidden_channels))
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_channels, embed_dims)
        self.drop = nn.Dropout(drop) if check_probability('drop', drop) else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights anew."""
        for fc in (self.fc1, self.fc2):
            nn.init.trunc_normal_(fc.weight, std=0.02)
            nn.init.zeros_(fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
