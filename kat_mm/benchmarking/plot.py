"""A picture of how long activations of growing size take."""

from collections.abc import Sequence
from pathlib import Path

LABELS = {'copy': 'copy (memory floor)', 'gelu': 'GELU', 'kernel': 'rational (kat_mm)'}
TRAFFIC = {'forward': 'read x, write y', 'backward': 'read x and dy, write dx'}


def plot_sizes(rows: Sequence[dict], png: str | Path) -> None:
    """Draws time against number of elements, forward and backward, to a PNG file.

    Args:
        rows: rows of tools/benchmark_rational.py, with `elements` in each.
        png: the file; folders that are missing are made.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout='constrained')
    names = dict.fromkeys(row['provider'] for row in rows)
    for axes, part in zip(figure.subplots(1, 2, sharey=True), TRAFFIC, strict=True):
        for name in names:
            points = [row for row in rows if (row['provider'], row['pass']) == (name, part)]
            points.sort(key=lambda row: row['elements'])
            sizes = [row['elements'] for row in points]
            style = {'color': 'grey', 'linestyle': '--'} if name == 'copy' else {'marker': 'o'}
            (line,) = axes.plot(
                sizes,
                [row['median'] for row in points],
                label=LABELS.get(name, name),
                markersize=4,
                **style,
            )
            low, high = ([row[key] for row in points] for key in ('q1', 'q3'))
            axes.fill_between(sizes, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set(xlabel='number of elements', title=f'{part} ({TRAFFIC[part]})')
        axes.set_xscale('log', base=2)
        axes.set_yscale('log')
        axes.grid(alpha=0.3, which='both')
    figure.axes[0].set_ylabel('time (ms)')
    figure.axes[0].legend()
    row = rows[0]
    figure.suptitle(f'Activations in {row["dtype"]} on {row["device"]}, torch {row["torch"]}')
    Path(png).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png, dpi=120)
