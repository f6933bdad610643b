"""Pictures of where tokens attend to."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from torch import Tensor

from .plot_style import new_figure, save, style

DARKEST = 0.6  # that the image makes the colours of the weights
SHOWN = 99.5  # percentile of the weights that the colours end at


def plot_attention(
    png: Path,
    title: str,
    picture: np.ndarray,
    token_size: int,
    queries: Sequence[tuple[int, int]],
    rows: Tensor,
    heads: Sequence[int],
) -> None:
    """Draws what tokens attend to over the image: a row for each token, a column for each head.

    Colours mean weights times their number N, so that 1 is the weight of an even mean; the image
    darkens them. Where there are negative weights, the colours diverge from zero.

    Args:
        png: file to write.
        title: of the picture.
        picture: the image, [height, width, 3].
        token_size: side of what a token stands for, in pixels.
        queries: (y, x) of the tokens.
        rows: their weights [queries, heads, h, w], NaN where they do not attend to.
        heads: numbers of the heads.
    """
    weights = rows.numpy()
    weights = weights * np.isfinite(weights).sum((2, 3), keepdims=True)
    seen = weights[np.isfinite(weights)]
    least, most = min(seen.min(), 0.0), max(seen.max(), 0.0)
    limit = max(np.percentile(np.abs(seen), SHOWN), 1e-30)
    if least < -1e-6 * most:
        norm, colours, extend = Normalize(-limit, limit), colormaps['RdBu_r'], 'both'
    else:
        norm, colours, extend = Normalize(0, limit), colormaps['Reds'], 'max'
    height, width = picture.shape[:2]
    columns = len(heads) + 1
    side = min(1.75, 7.0 / columns)
    with style():
        figure = new_figure(0.5 + len(queries) * side * height / width, columns * side + 1.0)
        panels = figure.subplots(len(queries), columns, squeeze=False)
        for i, (y, x) in enumerate(queries):
            for j, axes in enumerate(panels[i]):
                axes.imshow(
                    picture
                    if j == 0
                    else _over(picture, weights[i, j - 1], token_size, norm, colours)
                )
                place = ((x + 0.5) * token_size - 0.5, (y + 0.5) * token_size - 0.5)
                marker = dict(marker='s', markersize=6, fillstyle='none', linestyle='')
                axes.plot(*place, markeredgecolor='black', markeredgewidth=2.4, **marker)
                axes.plot(*place, markeredgecolor='#66ff66', markeredgewidth=1.2, **marker)
                axes.set(xticks=[], yticks=[])
                axes.grid(False)
                for spine in axes.spines.values():
                    spine.set_visible(False)
                if i == 0:
                    axes.set_title('image' if j == 0 else f'head {heads[j - 1]}')
            panels[i, 0].set_ylabel(f'token ({y}, {x})', fontsize=8)
        drawn = ScalarMappable(norm, colours)
        bar = figure.colorbar(drawn, ax=panels, extend=extend, shrink=0.9, pad=0.02, aspect=30)
        bar.set_label(r'weight $\times$ N   (1: an even mean)')
        figure.suptitle(title)
        save(figure, png)


def _over(
    picture: np.ndarray, weights: np.ndarray, token_size: int, norm: Normalize, colours: Colormap
) -> np.ndarray:
    """Colours an image [height, width, 3] by weights [h, w], and leaves it grey where they are NaN.

    Its brightness multiplies the colours, so that both are seen.
    """
    height, width = picture.shape[:2]
    each = weights.repeat(token_size, 0).repeat(token_size, 1)[:height, :width]
    brightness = picture.astype(float) @ (0.299, 0.587, 0.114)
    low, high = brightness.min(), max(brightness.max(), brightness.min() + 1)
    brightness = DARKEST + (1 - DARKEST) * (brightness - low) / (high - low)
    colour = colours(norm(np.nan_to_num(each)))[..., :3]
    colour[np.isnan(each)] = 0.75
    return colour * brightness[..., None]
