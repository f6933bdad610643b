"""What the pictures have in common: they are read at the width of a page, in print too."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

WIDTH = 8.0  # inches
DPI = 150
STYLE = {
    'font.size': 9,
    'axes.titlesize': 9,
    'axes.labelsize': 9,
    'legend.fontsize': 8.5,
    'xtick.labelsize': 8,
    'ytick.labelsize': 8,
    'axes.grid': True,
    'grid.alpha': 0.3,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'figure.titlesize': 10.5,
}
# Of Okabe and Ito, which the colour-blind tell apart.
BLUE, ORANGE, GREEN, PURPLE, GREY = '#0072B2', '#D55E00', '#009E73', '#CC79A7', '0.55'


def style():
    """Returns the context in which pictures are made."""
    return mpl.rc_context(STYLE)


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Returns an empty figure of a size in inches; no window and no global state."""
    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, png: Path) -> None:
    """Writes a figure to a PNG file."""
    figure.savefig(png, dpi=DPI)
