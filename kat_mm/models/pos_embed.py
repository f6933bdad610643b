"""Learned absolute position embeddings for maps of any size."""

import math

import torch
from torch import Tensor

from ..arithmetic import is_symbol
from ..errors import ConfigError


def resize_pos_embed(
    pos_embed: Tensor, old: tuple[int, int], new: tuple[int, int], num_prefix: int
) -> Tensor:
    """Computes the position embeddings of a grid from those of another, by bicubic interpolation.

    The filter is antialiased, as `torch.nn.functional.interpolate(..., antialias=True)`. It is
    written as two matrix products because these have reproducible gradients on GPUs and export
    to any runtime.

    Args:
        pos_embed: [1, P + h * w, C], the embeddings of P prefix tokens, then of the grid row by
            row. Prefix embeddings are kept.
        old: (h, w) of the grid of pos_embed.
        new: (h, w) wanted.
        num_prefix: P.

    Returns:
        Embeddings [1, P + h' * w', C] in the dtype of pos_embed, which is returned itself where
        it already fits.
    """
    # While exporting with a dynamic size, asking whether it is the old one would rule that out.
    if not is_symbol(new[0] + new[1]) and old == new:
        return pos_embed
    # Half precision is too coarse for positions, so autocast must leave the products alone. It
    # does not know the meta device, where nothing is cast.
    device = 'cpu' if pos_embed.is_meta else pos_embed.device.type
    with torch.autocast(device, enabled=False):
        prefix, x = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
        x = x.unflatten(1, old).float()
        rows = resize_matrix(old[0], new[0], x.device)
        columns = resize_matrix(old[1], new[1], x.device)
        x = torch.einsum('yh,bhwc->bywc', rows, x)
        x = torch.einsum('xw,bywc->byxc', columns, x)
        return torch.cat([prefix, x.flatten(1, 2).to(prefix.dtype)], 1)


def resize_matrix(old: int, new: int, device: torch.device | None = None) -> Tensor:
    """Computes the matrix [new, old] that resizes a row of samples by antialiased bicubic filter.

    The filter is the cubic convolution kernel with a = -1/2 (Keys, 1981, eq. 15), as wide as 4
    samples of the coarser of the two grids. Samples beyond the ends have no weight, and weights
    add up to 1.
    """
    scale = old / new
    centres = (torch.arange(new, device=device) + 0.5) * scale
    samples = torch.arange(old, device=device) + 0.5
    s = (centres[:, None] - samples).abs() / torch.sym_max(scale, 1.0)
    near = (1.5 * s - 2.5) * s * s + 1
    far = ((-0.5 * s + 2.5) * s - 4) * s + 2
    weights = torch.where(s < 1, near, torch.where(s < 2, far, torch.zeros_like(s)))
    return weights / weights.sum(1, keepdim=True)


def adapt_pos_embed(
    pos_embed: Tensor, has_cls_token: bool, grid: tuple[int, int], num_prefix: int
) -> Tensor:
    """Computes a model's position embeddings from those of a checkpoint.

    Args:
        pos_embed: [1, M, C] of the checkpoint: a row for its class token, if it has one and
            embeds its position, then those of a square grid or of one equal to `grid`.
        has_cls_token: the checkpoint has a class token.
        grid: (h, w) of the model.
        num_prefix: 1 if the model has a class token, otherwise 0.

    Returns:
        [1, num_prefix + h * w, C]. The row of the class token is zero where pos_embed has none.

    Raises:
        ConfigError: if the rows do not make a grid.
    """
    rows = pos_embed.shape[1]
    # Some models add no position to the class token: the rows are then those of the grid alone.
    for cls_rows in (1, 0) if has_cls_token else (0,):
        count = rows - cls_rows
        side = math.isqrt(count)
        if count == grid[0] * grid[1]:
            old = grid
        elif side * side == count and count:
            old = (side, side)
        else:
            continue
        cls_row, patches = pos_embed[:, :cls_rows], pos_embed[:, cls_rows:]
        if num_prefix and not cls_rows:
            cls_row = torch.zeros_like(pos_embed[:, :1])
        patches = resize_pos_embed(patches, old, grid, 0)
        return torch.cat([cls_row[:, :num_prefix], patches], 1)
    raise ConfigError(
        f'pos_embed {tuple(pos_embed.shape)} holds {rows} positions, neither of a square grid nor '
        f'of the {grid[0]} x {grid[1]} grid of this model; set img_size to that of the checkpoint'
    )
