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
        within: what 99.9% of the scores do not exceed in size, shaded; None where there are none.
    """

    name: str
    labels: Sequence[str]
    learned: Tensor
    start: Tensor | None
    within: float | None


def plot_units(png: Path, x: Tensor, curves: Sequence[Sequence[Curves]], title: str) -> None:
    """Draws functions as they are learned, over broad pale lines that are their start.

    Args:
        png: file to write.
        x: [points].
        curves: a row of panels for each layer, a panel for each head.
        title: of the picture.
    """
    columns = max(map(len, curves))
    with style():
        figure = new_figure(1.0 + 1.6 * len(curves), max(2.1 * columns + 0.5, 4.5))
        panels = figure.subplots(len(curves), columns, squeeze=False, sharex=True)
        for line, layer in zip(panels, curves, strict=True):
            for axes in line[len(layer) :]:
                axes.set_visible(False)
            for axes, head in zip(line, layer, strict=False):
                _draw(axes, x.numpy(), head)
        for axes in panels[-1]:
            axes.set_xlabel('x')
        for axes in panels[:, 0]:
            axes.set_ylabel(r'$\varphi_{pq}(x)$')
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc='outside lower center', ncols=len(handles))
        figure.suptitle(title)
        save(figure, png)


def _draw(axes, x: np.ndarray, head: Curves) -> None:
    if head.within is not None and head.within < x[-1]:
        axes.axvspan(-head.within, head.within, color='0.93', zorder=0)
    for i, (label, colour) in enumerate(zip(head.labels, COLOURS, strict=False)):
        axes.plot(x, head.learned[i], color=colour, label=label, linewidth=1.2)
        if head.start is not None:
            axes.plot(
                x, head.start[i], color=colour, alpha=0.3, linewidth=4, label=f'{label}: start'
            )
    axes.set_title(head.name)
    axes.margins(x=0)
