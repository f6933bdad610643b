"""What a fit of attention has reached: table, numbers and picture."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from .attention import BlockFit

HEAD = ('attention', 'median', 'worst', 'uniform', 'ridge', 'condition', 'largest score')
CAPTION = (
    'Relative error of the output on images that were not fitted, of the median and the worst '
    'head;\nuniform: that of attention to all tokens alike. 1 is the error of no attention at all.'
)


def error_table(fits: Sequence[BlockFit]) -> str:
    """Returns the errors of each block as lines of text."""
    rows = [HEAD]
    for fit in fits:
        solution = fit.solution
        rows.append(
            (
                fit.name,
                f'{statistics.median(fit.errors):.3g}',
                f'{max(fit.errors):.3g}',
                f'{statistics.median(fit.uniform):.3g}',
                f'{statistics.median(solution.ridges):.0e}',
                f'{max(solution.conditions):.0e}',
                f'{fit.largest_score:.3g}',
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        '  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    return '\n'.join([*lines, CAPTION])


def as_numbers(fits: Sequence[BlockFit]) -> list[dict]:
    """Returns all of the fits as json takes it."""
    return [
        dict(
            name=fit.name,
            errors=fit.errors,
            scales=fit.scales,
            uniform=fit.uniform,
            ridges=fit.solution.ridges,
            conditions=fit.solution.conditions,
            held_out_errors=fit.solution.errors,
            largest_score=fit.largest_score,
            rows=fit.rows,
        )
        for fit in fits
    ]


def plot_errors(fits: Sequence[BlockFit], png: Path) -> None:
    """Draws the error of each head of each block, beside that of uniform attention."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 0.7 * max(len(fits), 6), 4), layout='constrained')
    axes = figure.subplots()
    for i, fit in enumerate(fits):
        names = ('fitted operator', 'uniform attention') if i == 0 else (None, None)
        axes.plot([i - 0.12] * len(fit.errors), fit.errors, 'o', color='tab:blue', label=names[0])
        axes.plot([i + 0.12] * len(fit.uniform), fit.uniform, 'x', color='0.5', label=names[1])
    axes.set_xticks(range(len(fits)), [fit.name for fit in fits], rotation=30, ha='right')
    axes.set(ylabel='relative error of the output', ylim=(0, None), title='Heads, by block')
    axes.axhline(1, color='0.7', linestyle='--')
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(png, dpi=120)
