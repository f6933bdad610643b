"""Pictures of how long activations of growing size take, and of training on several GPUs."""

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


def plot_scaling(rows: Sequence[dict], png: str | Path) -> None:
    """Draws images per second and efficiency against the number of GPUs to a PNG file.

    Args:
        rows: rows of tools/benchmark_scaling.py.
        png: the file; folders that are missing are made.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout='constrained')
    left, right = figure.subplots(1, 2)
    series = {}
    for row in rows:
        series.setdefault((row['config'], row['engine']), []).append(row)
    for (config, engine), points in series.items():
        points.sort(key=lambda row: row['processes'])
        numbers = [row['processes'] for row in points]
        rates = [row['images_per_s'] for row in points]
        label = f'{Path(config).stem}, {engine.upper()}'
        (line,) = left.plot(numbers, rates, marker='o', markersize=4, label=label)
        ideal = [rates[0] * number / numbers[0] for number in numbers]
        left.plot(numbers, ideal, color=line.get_color(), linestyle='--', linewidth=1, alpha=0.6)
        if 'efficiency' in points[0]:
            efficiencies = [row['efficiency'] for row in points]
            right.plot(numbers, efficiencies, marker='o', markersize=4, label=label)
    on_cpu = rows[0]['device'].startswith('CPU')
    ticks = sorted({row['processes'] for row in rows})
    for axes in (left, right):
        axes.set(xlabel='processes' if on_cpu else 'GPUs')
        axes.set_xscale('log', base=2)
        axes.set_xticks(ticks, labels=map(str, ticks))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.set(title='Images per second (dashed: as many times the first)')
    left.set_yscale('log', base=2)
    left.yaxis.set_major_formatter('{x:g}')
    right.axhline(1, color='grey', linestyle='--', linewidth=1)
    right.set(title='Efficiency', ylim=(0, 1.1))
    left.legend(fontsize=8)
    figure.suptitle(f'Training on {rows[0]["device"]}, torch {rows[0]["torch"]}')
    Path(png).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png, dpi=120)
