"""The patch embedding: from images to tokens."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..arithmetic import ceil_div, is_symbol


class PatchEmbed(nn.Module):
    """Computes a linear embedding of each patch (ViT, arXiv 2010.11929, section 3.1).

    Images [B, in_channels, H, W] of any size are padded with zeros at the right and bottom to a
    multiple of the patch size.

    Returns from forward:
        The tokens [B, h * w, embed_dims] row by row, and (h, w) = (ceil(H / p), ceil(W / p)).
    """

    def __init__(self, in_channels: int, embed_dims: int, patch_size: int):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dims, patch_size, patch_size)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        height, width = images.shape[-2:]
        h, w = (ceil_div(size, self.patch_size) for size in (height, width))
        bottom, right = h * self.patch_size - height, w * self.patch_size - width
        if is_symbol(bottom + right) or bottom or right:
            images = F.pad(images, (0, right, 0, bottom))
        x = self.proj(images)
        # Contiguous with the channels last, which is how all that follows reads the tokens.
        return x.flatten(2).transpose(1, 2).contiguous(), (h, w)
