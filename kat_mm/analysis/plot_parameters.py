"""Histograms of parameters by kind."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import NullFormatter
from torch import Tensor

from .plot_style import BLUE, new_figure, save, style

BINS = 80
SHOWN = (0.0005, 0.9995)  # quantiles between which most parameters are drawn


class Kind(NamedTuple):
    """The entries of one kind of parameter, and those at the start where these are known."""

    name: str
    values: Tensor
    start: Tensor | None


def plot_histograms(png: Path, kinds: Sequence[Kind], title: str) -> None:
    """Draws a histogram of each kind, over the outline of that of the start.

    The axis leaves out the 0.1% of the entries that lie farthest off.
    """
    columns = min(len(kinds), 4)
    lines = math.ceil(len(kinds) / columns)
    with style():
        figure = new_figure(0.9 + 1.55 * lines)
        panels = figure.subplots(lines, columns, squeeze=False)
        for axes, kind in zip(panels.flat, kinds, strict=False):
            _draw(axes, kind)
        for axes in panels.flat[len(kinds) :]:
            axes.set_visible(False)
        for axes in panels[:, 0]:
            axes.set_ylabel('share of entries')
        handles, labels = [], []
        for axes in panels.flat:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                if label not in labels:
                    handles.append(handle)
                    labels.append(label)
        figure.legend(handles, labels, loc='outside lower center', ncols=len(labels))
        figure.suptitle(title)
        save(figure, png)


def _draw(axes, kind: Kind) -> None:
    values = kind.values.numpy()
    both = [values] if kind.start is None else [values, kind.start.numpy()]
    low, high = (
        pick(np.quantile(v[:: max(len(v) // 10**6, 1)], level) for v in both)
        for pick, level in zip((min, max), SHOWN, strict=True)
    )
    if not high - low > 1e-9 * max(abs(low), abs(high)):  # all the same
        low, high = low - 0.5 * max(abs(low), 1), high + 0.5 * max(abs(high), 1)
    edges = np.linspace(low, high, min(BINS, max(len(values) // 4, 10)) + 1)
    for data, options in zip(
        both,
        (
            dict(color=BLUE, alpha=0.6, label='checkpoint'),
            dict(color='black', histtype='step', linewidth=0.9, label='start'),
        ),
        strict=False,
    ):
        axes.hist(data, edges, weights=np.full(len(data), 1 / len(data)), **options)
    axes.set_yscale('log')
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(f'{kind.name}\n{_count(len(values))} entries', fontsize=8)
    axes.locator_params(axis='x', nbins=4)


def _count(number: int) -> str:
    for unit, size in (('M', 1e6), ('k', 1e3)):
        if number >= size:
            return f'{number / size:.3g} {unit}'
    return str(number)
