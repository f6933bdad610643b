"""Pictures of singular values and effective ranks."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from .plot_style import BLUE, GREY, ORANGE, new_figure, save, style

# How each kind of matrix is drawn: label, colour, line. Those of softmax come on top, in dashes, so
# that both are seen where they are the same.
DRAWN = {
    'scores': ('scores S (before)', GREY, '-'),
    'weights': ('attention weights (after)', ORANGE, '-'),
    'softmax': ('softmax of the same S', BLUE, '--'),
}
FLOOR = 1e-7  # what fp32 leaves of smaller singular values, over the largest, is rounding


def plot_effective_ranks(png: Path, summaries: Sequence[dict], title: str) -> None:
    """Draws the effective rank of each block's matrices: means over heads, and each head.

    Args:
        png: file to write.
        summaries: of the blocks in their order, as `BlockSpectra.summary` gives them.
        title: of the picture.
    """
    with style():
        figure = new_figure(3.6, 6.5)
        axes = figure.subplots()
        blocks = np.arange(len(summaries))
        for shift, (name, (label, colour, line)) in zip((-1, 0, 1), DRAWN.items(), strict=True):
            ranks = [s['effective_rank'][name] for s in summaries]
            means = [np.mean(rank) for rank in ranks]
            axes.plot(
                blocks, means, line, color=colour, marker='o', markersize=4, label=label, zorder=3
            )
            for block, rank in enumerate(ranks):
                places = np.full(len(rank), block + 0.07 * shift)
                axes.plot(places, rank, '.', color=colour, alpha=0.4, markersize=5)
        tokens = {n for s in summaries for n in s['tokens']}
        count = str(*tokens) if len(tokens) == 1 else f'{min(tokens)} to {max(tokens)}'
        axes.set(
            xlabel='block',
            ylabel='effective rank',
            yscale='log',
            xticks=blocks,
            title=f'{title}\nN = {count} tokens; points are heads, lines their means',
        )
        axes.set_xlim(-0.4, len(summaries) - 0.6)
        axes.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
        axes.yaxis.set_minor_formatter(
            lambda value, _: f'{value:g}' if f'{value:e}'[0] in '25' else ''
        )
        axes.legend()
        save(figure, png)


def plot_singular_values(
    png: Path, curves: Sequence[dict[str, Tensor]], names: Sequence[str], title: str
) -> None:
    """Draws the singular values of each block: medians and the middle 80% over heads and images.

    Args:
        png: file to write.
        curves: of the blocks, as `BlockSpectra.curves` gives them.
        names: of the blocks.
        title: of the picture.
    """
    columns = min(len(curves), 4)
    lines = math.ceil(len(curves) / columns)
    with style():
        figure = new_figure(0.9 + 2.0 * lines, max(2.0 * columns + 0.4, 4.5))
        panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
        for axes, curve, name in zip(panels.flat, curves, names, strict=False):
            for kind, (label, colour, line) in DRAWN.items():
                values = curve[kind].flatten(0, 1).clamp(min=FLOOR / 10).numpy()
                index = np.arange(1, values.shape[1] + 1)
                low, middle, high = np.quantile(values, (0.1, 0.5, 0.9), axis=0)
                axes.plot(index, middle, line, color=colour, label=label)
                axes.fill_between(index, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.set(title=name, yscale='log', ylim=(FLOOR, 1.5), xlabel='index i')
        for axes in panels.flat[len(curves) :]:
            axes.set_visible(False)
        for axes in panels[:, 0]:
            axes.set_ylabel(r'$\sigma_i\,/\,\sigma_1$')
        handles = panels[0, 0].get_legend_handles_labels()
        figure.legend(*handles, loc='outside lower center', ncols=3)
        figure.suptitle(title)
        save(figure, png)
