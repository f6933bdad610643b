"""Pictures of loss landscapes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import BoundaryNorm
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from .plot_style import new_figure, save, style

LEVELS = 24
# Up to how many times the heights of the path and of the median above the least loss levels go.
BEYOND, STEEP = 1.5, 4.0


def plot_landscape(
    png: Path,
    axes_of_grid: tuple[Tensor, Tensor],
    losses: Tensor,
    path: Tensor,
    iterations: Sequence[int],
    variance: tuple[float, float],
    title: str,
) -> None:
    """Draws contours of the loss, and the path of training over them.

    Args:
        png: file to write.
        axes_of_grid: coordinates a and b.
        losses: [len(a), len(b)].
        path: (a, b) of each checkpoint, [checkpoints, 2].
        iterations: of the checkpoints.
        variance: shares of the path's variance along both directions.
        title: of the picture.
    """
    z = losses.numpy().T
    finite = z[np.isfinite(z)] if np.isfinite(z).any() else np.zeros(1)
    low = finite.min()
    # Far from the path the loss may explode: what is beyond has the last colour.
    near = [
        (axis - p[:, None]).abs().argmin(1) for axis, p in zip(axes_of_grid, path.T, strict=True)
    ]
    on_path = np.nan_to_num(losses[near[0], near[1]].numpy(), nan=low, posinf=low).max()
    height = max(BEYOND * (on_path - low), STEEP * (np.median(finite) - low))
    extend = 'max' if finite.max() > low + height else 'neither'
    # Closer to the least loss, where the path goes and slopes are small.
    height = max(min(height, finite.max() - low), 1e-6)
    levels = low + height * np.linspace(0, 1, LEVELS + 1) ** 2
    norm = BoundaryNorm(levels, 256, extend=extend)
    with style():
        figure = new_figure(4.6, 6.5)
        axes = figure.subplots()
        a, b = (axis.numpy() for axis in axes_of_grid)
        shown = np.ma.masked_invalid(z)
        filled = axes.contourf(a, b, shown, levels, norm=norm, cmap='viridis', extend=extend)
        axes.set_facecolor('0.8')  # where the loss is no number
        axes.contour(a, b, shown, levels, colors='white', linewidths=0.4, alpha=0.6)
        axes.plot(*path.T.numpy(), color='white', linewidth=2.4, alpha=0.9, zorder=2)
        axes.plot(*path.T.numpy(), color='black', linewidth=1.1, zorder=3)
        axes.scatter(*path.T.numpy(), s=12, color='black', zorder=3)
        ends = dict(edgecolor='black', linewidth=0.8, zorder=4)
        axes.scatter(
            *path[0].numpy(), s=55, color='white', label=f'iteration {iterations[0]}', **ends
        )
        axes.scatter(
            *path[-1].numpy(),
            s=130,
            marker='*',
            color='#D55E00',
            label=f'iteration {iterations[-1]}',
            **ends,
        )
        axes.set(
            xlabel=f"1st principal direction ({variance[0]:.1%} of the path's variance)",
            ylabel=f'2nd principal direction ({variance[1]:.1%})',
            title=title,
        )
        axes.grid(False)
        axes.legend(framealpha=0.9)
        bar = figure.colorbar(filled, ax=axes, pad=0.02)
        bar.set_label('training loss')
        bar.set_ticks(levels[:: LEVELS // 8])
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:.3g}'))
        bar.ax.minorticks_off()
        save(figure, png)
