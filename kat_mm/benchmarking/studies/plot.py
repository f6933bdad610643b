"""A picture of a study's scores."""

from collections.abc import Sequence
from pathlib import Path

from .study import Study
from .summary import mean_and_spread

COLOURS = {False: '#1f5fa8', True: '#c4572e'}  # of what starts anew, and from another's weights
LABELS = {False: 'from scratch', True: "from another variant's weights"}


def plot_scores(study: Study, rows: Sequence[dict], png: str | Path) -> None:
    """Draws each task's first score to a PNG file: means, their spread, and every seed as a dot.

    Args:
        study: names tasks and variants; those without a score keep their line.
        rows: of `summary.finished`.
        png: the file; folders that are missing are made.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    variants = [*study.variants.values()]
    width = 2.2 + 3.9 * len(study.tasks)
    figure = Figure(figsize=(width, 1.5 + 0.36 * len(variants)), layout='constrained')
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(study.tasks), sharey=True, squeeze=False)[0]
    for axes, task in zip(panels, study.tasks.values(), strict=True):
        score = task.scores[0]
        for place, variant in enumerate(variants):
            found = [
                row[score]
                for row in rows
                if (row['task'], row['variant']) == (task.name, variant.name) and score in row
            ]
            if found:
                mean, spread = mean_and_spread(found)
                colour = COLOURS[bool(variant.after)]
                axes.errorbar(mean, place, xerr=spread, fmt='|', ms=12, capsize=3, color=colour)
                # Below the bar, which would hide them.
                places = [place + 0.28] * len(found)
                axes.plot(found, places, 'o', ms=4.5, alpha=0.55, color=colour, mew=0)
        axes.set(xlabel=f'{score} (0 to 1)', title=task.name)
        axes.grid(alpha=0.3)
    panels[0].set_yticks(range(len(variants)), [variant.title for variant in variants])
    panels[0].set_ylim(len(variants) - 0.5, -0.5)
    for has_parent, label in LABELS.items():
        if any(bool(variant.after) == has_parent for variant in variants):
            panels[0].plot([], [], 'o', color=COLOURS[has_parent], label=label)
    devices = ', '.join(sorted({row['device'] for row in rows}))
    seeds = f'{len(study.seeds)} seeds: dots are single ones, bars mean ± standard deviation'
    figure.suptitle(f'{study.name}, {seeds} ({devices})', fontsize=10)
    if any(variant.after for variant in variants):
        figure.legend(loc='outside lower center', ncols=2, fontsize=9, frameon=False)
    Path(png).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png, dpi=120)
