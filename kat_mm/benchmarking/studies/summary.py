"""Means and spreads of a study's scores, as a table, and all figures as CSV."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table

from ..rows import ORIGIN, write_csv
from .runs import Run
from .study import SCORES, Study

FIGURES = ('loss', 'nan', 'seconds', 'step_ms', 'peak_mib', 'beside', 'attempts')
COLUMNS = ('study', 'task', 'variant', 'after', 'seed', *SCORES, *FIGURES, 'settings', *ORIGIN)


def finished(study: Study, runs: Iterable[Run]) -> list[dict]:
    """Returns the rows, of `COLUMNS`, of all runs that are finished, in the order of the study.

    `seconds` are those of the last process, with its start and validation; `beside` tells how many
    others the GPU had at most; `nan` is 1 for a run that diverged, which has no scores.
    """
    order = {
        (task, variant): i
        for i, (task, variant) in enumerate((t, v) for t in study.tasks for v in study.variants)
    }
    rows = []
    for run in sorted(runs, key=lambda r: (order[r.task.name, r.variant.name], r.seed)):
        if (result := run.result()) is not None:
            row = dict(study=study.name, task=run.task.name, variant=run.variant.name)
            row |= dict(after=run.variant.after or '', seed=run.seed, settings=run.key)
            rows.append({**row, **{k: v for k, v in result.items() if k in COLUMNS}})
    return rows


def write_rows(path: str | Path, rows: Sequence[dict]) -> None:
    """Writes the figures of each finished run to a CSV file."""
    write_csv(path, COLUMNS, rows)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean and the sample standard deviation, which a single value has not."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def tables(study: Study, rows: Sequence[dict]) -> list[Table]:
    """Returns a table for each task: scores and loss as mean ± spread, what they cost as means."""
    return [
        _table(study, task, [row for row in rows if row['task'] == task]) for task in study.tasks
    ]


def _table(study: Study, task: str, rows: Sequence[dict]) -> Table:
    shown = [*study.tasks[task].scores, 'loss']
    table = Table(title=f'{study.name}: {task}', title_justify='left')
    table.add_column('variant')
    for column in ('seeds', *shown, 'NaN', 's', 'ms a step', 'peak MiB'):
        table.add_column(column, justify='right')
    for variant in study.variants.values():
        own = [row for row in rows if row['variant'] == variant.name]
        cells = [f'{len(own)} of {len(study.seeds)}']
        cells += [_cell(own, key, 3, with_spread=True) for key in shown]
        cells.append(str(sum(row['nan'] for row in own)))
        cells += [_cell(own, key, digits) for key, digits in _COSTS]
        table.add_row(variant.title, *cells)
    return table


_COSTS = (('seconds', 0), ('step_ms', 1), ('peak_mib', 0))


def _cell(rows: Sequence[dict], key: str, digits: int, with_spread: bool = False) -> str:
    values = [row[key] for row in rows if key in row]
    if not values:
        return ''
    mean, spread = mean_and_spread(values)
    text = f'{mean:.{digits}f}'
    return f'{text} ± {spread:.{digits}f}' if with_spread and spread is not None else text
