"""Pictures of where tokens attend to."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import Normalize, TwoSlopeNorm
from torch import Tensor

from .plot_style import new_figure, save, style

OPACITY = 0.75  # of the weights over the image
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

    Colours mean weights times their number N, so that 1 is the weight of an even mean. Where there
    are negative weights, the colours diverge from zero.

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
        norm, colours, extend = TwoSlopeNorm(0, -limit, limit), 'RdBu_r', 'both'
    else:
        norm, colours, extend = Normalize(0, limit), 'inferno', 'max'
    height, width = picture.shape[:2]
    grey = picture.astype(float) @ (0.299, 0.587, 0.114)
    columns = len(heads)
    side = min(1.7, 7.2 / columns)
    with style():
        figure = new_figure(
            0.75 + len(queries) * side * height / width, max(columns * side + 0.9, 4)
        )
        panels = figure.subplots(len(queries), columns, squeeze=False)
        for i, (y, x) in enumerate(queries):
            for j, head in enumerate(heads):
                axes = panels[i, j]
                axes.imshow(grey, cmap='gray', vmin=0, vmax=255)
                h, w = weights.shape[2:]
                drawn = axes.imshow(
                    weights[i, j],
                    norm=norm,
                    cmap=colours,
                    alpha=OPACITY,
                    extent=(-0.5, w * token_size - 0.5, h * token_size - 0.5, -0.5),
                    interpolation='nearest',
                )
                place = ((x + 0.5) * token_size - 0.5, (y + 0.5) * token_size - 0.5)
                marker = dict(marker='s', markersize=6, fillstyle='none', linestyle='')
                axes.plot(*place, markeredgecolor='black', markeredgewidth=2.4, **marker)
                axes.plot(*place, markeredgecolor='#66ff66', markeredgewidth=1.2, **marker)
                axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
                axes.grid(False)
                for spine in axes.spines.values():
                    spine.set_visible(False)
                if i == 0:
                    axes.set_title(f'head {head}')
            panels[i, 0].set_ylabel(f'token ({y}, {x})', fontsize=8)
        bar = figure.colorbar(drawn, ax=panels, extend=extend, shrink=0.9, pad=0.02, aspect=30)
        bar.set_label('weight × N   (1: an even mean)')
        figure.suptitle(title)
        save(figure, png)
