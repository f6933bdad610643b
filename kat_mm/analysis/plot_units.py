"""Pictures of the learned functions of Kolmogorov-Arnold attention."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from .plot_style import BLUE, GREEN, ORANGE, new_figure, save, style

COLOURS = BLUE, ORANGE, GREEN


class Curves(NamedTuple):
    """Functions of one head of a layer.

    Attributes:
        name: of the layer and head.
        labels: of the functions.
        learned: [functions, points].
        start: the same, None where it is not known.
    """

    name: str
    labels: Sequence[str]
    learned: Tensor
    start: Tensor | None


def plot_units(
    png: Path, x: Tensor, curves: Sequence[Sequence[Curves]], title: str, within: float | None
) -> None:
    """Draws functions as they are learned, and dashed as they started.

    Args:
        png: file to write.
        x: [points].
        curves: a row of panels for each layer, a panel for each head.
        title: of the picture.
        within: what 99.9% of the scores do not exceed in size; the interval is shaded.
    """
    columns = max(map(len, curves))
    with style():
        figure = new_figure(1.0 + 1.6 * len(curves), max(2.1 * columns + 0.5, 4.5))
        panels = figure.subplots(len(curves), columns, squeeze=False, sharex=True)
        for line, layer in zip(panels, curves, strict=True):
            for axes in line[len(layer) :]:
                axes.set_visible(False)
            for axes, head in zip(line, layer, strict=False):
                _draw(axes, x.numpy(), head, within)
        for axes in panels[-1]:
            axes.set_xlabel('score x')
        for axes in panels[:, 0]:
            axes.set_ylabel(r'$\varphi_{pq}(x)$')
        handles = dict(zip(*reversed(panels[0, 0].get_legend_handles_labels()), strict=True))
        figure.legend(
            handles.values(), handles.keys(), loc='outside lower center', ncols=len(handles)
        )
        figure.suptitle(title)
        save(figure, png)


def _draw(axes, x: np.ndarray, head: Curves, within: float | None) -> None:
    if within is not None:
        axes.axvspan(-within, within, color='0.93', zorder=0, label='99.9% of the scores')
    for i, (label, colour) in enumerate(zip(head.labels, COLOURS, strict=False)):
        axes.plot(x, head.learned[i], color=colour, label=label, linewidth=1.5)
        if head.start is not None:
            start = 'at the start' if i == 0 else None
            axes.plot(x, head.start[i], '--', color=colour, alpha=0.8, linewidth=1, label=start)
    axes.set_title(head.name)
    axes.margins(x=0)
