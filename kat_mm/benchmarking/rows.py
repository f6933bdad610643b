"""Rows of figures: where they come from, their ratios, tables and CSV files."""

import csv
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch
from rich.table import Table

from ..errors import DataError

ORIGIN = ('date', 'commit', 'device', 'torch')  # the columns that `origin` fills


def origin(device: torch.device) -> dict[str, str]:
    """Returns the columns `ORIGIN`: when, from what code and on what a figure was measured."""
    now = datetime.now(timezone.utc).isoformat(timespec='seconds')
    values = (now, commit(), device_name(device), str(torch.__version__))
    return dict(zip(ORIGIN, values, strict=True))


def commit() -> str:
    """Returns kat_mm's commit: KAT_MM_COMMIT of the environment, or else git's short hash.

    The hash has + for changes in tracked files; where kat_mm is not in a git checkout, it is
    'unknown'. The variable is for copies without a repository of their own: inside of another one,
    git would tell the commit of that.
    """
    if given := os.environ.get('KAT_MM_COMMIT'):
        return given

    def git(*arguments) -> str:
        command = ['git', '--no-optional-locks', *arguments]
        folder = Path(__file__).resolve().parent
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changes = git('status', '--porcelain', '--untracked-files=no')
        return git('rev-parse', '--short', 'HEAD') + ('+' if changes else '')
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def device_name(device: torch.device) -> str:
    """Returns the GPU's name, or 'CPU' and its number of threads."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    return f'CPU, threads: {torch.get_num_threads()}'


def add_step_ratios(figures: Mapping[str, dict], base: str, prefix: str) -> None:
    """Puts the ratios of one subject, `base`, to each into the figures of their steps."""
    for key, name in (('median_ms', 'ms'), ('kernel_ms', 'kernel'), ('peak_mib', 'mib')):
        for figure in figures.values():
            if key in figure:
                figure[f'{prefix}_{name}_ratio'] = figures[base][key] / figure[key]


def add_throughput(figure: dict, batch: int) -> None:
    """Puts images per second, and the share of the step that a GPU works, into a step's figures."""
    figure['images_per_s'] = 1e3 * batch / figure['median_ms']
    if 'kernel_ms' in figure:
        figure['busy'] = figure['kernel_ms'] / figure['median_ms']


def add_efficiency(rows: Sequence[dict]) -> None:
    """Puts the efficiency, if one of the rows is of a single process, into all of them.

    It is images per second against those of one process, times the number of processes.
    """
    alone = [row['images_per_s'] for row in rows if row['processes'] == 1]
    for row in rows if alone else ():
        row['efficiency'] = row['images_per_s'] / (row['processes'] * alone[0])


def throughput_table(rows: Iterable[tuple[str, dict]], subject: str) -> Table:
    """Returns the table of images per second and of what a step waits for, headed `subject`."""
    table = Table()
    table.add_column(subject)
    for column in ('images/s', 'GPU busy', 'ms with loader', 'to loaded batches', 'waiting for it'):
        table.add_column(column, justify='right')
    for name, figure in rows:
        shown = dict(figure)
        if 'loader_ms' in figure:
            shown['loader_ratio'] = figure['loader_ms'] / figure['median_ms']
        cells = [
            format(shown[key], form) if key in shown else ''
            for key, form in (
                *(('images_per_s', '.1f'), ('busy', '.0%'), ('loader_ms', '.1f')),
                *(('loader_ratio', '.3f'), ('waiting', '.1%')),
            )
        ]
        table.add_row(name, *cells)
    return table


def step_table(
    title: str, rows: Iterable[tuple[str, dict]], prefix: str, subject: str, ratio: str, digits: int
) -> Table:
    """Returns the table of steps with their ratios, a row for each, headed `subject`."""
    table = Table(title=title, title_justify='left')
    table.add_column(subject)
    for column in ('ms', 'quartiles', ratio, 'kernels ms', ratio, 'peak MiB', ratio):
        table.add_column(column, justify='right')
    for name, figure in rows:
        cells = [
            format(figure[key], f'.{places}f') if key in figure else ''
            for key, places in (
                *(('median_ms', digits), (f'{prefix}_ms_ratio', 3)),
                *(('kernel_ms', digits), (f'{prefix}_kernel_ratio', 3)),
                *(('peak_mib', 0), (f'{prefix}_mib_ratio', 3)),
            )
        ]
        cells.insert(1, f'{figure["q1_ms"]:.{digits}f} - {figure["q3_ms"]:.{digits}f}')
        table.add_row(name, *cells)
    return table


def check_csv(path: str | Path, columns: Sequence[str]) -> None:
    """Checks that rows of these columns can be appended, which is worth knowing before measuring.

    Raises:
        DataError: if the file is no such CSV file or cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open('a+', newline='') as file:
            file.seek(0)
            header = next(csv.reader(file), None)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or 'it is no text'
        raise DataError(f'--csv {path}: cannot be appended to ({reason}); name a file') from error
    if header is not None and header != list(columns):
        raise DataError(
            f'--csv {path}: has the columns {",".join(header)}, the new rows {",".join(columns)}; '
            'choose another file or move this one away'
        )


def append_csv(path: str | Path, columns: Sequence[str], rows: Sequence[Mapping]) -> None:
    """Appends rows to a CSV file, below a header if it is new; floats get 6 digits."""
    check_csv(path, columns)
    is_new = not Path(path).stat().st_size
    with Path(path).open('a', newline='') as file:
        writer = csv.DictWriter(file, columns, restval='', lineterminator='\n')
        if is_new:
            writer.writeheader()
        for row in rows:
            values = {k: f'{v:.6g}' if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow(values)


def write_csv(path: str | Path, columns: Sequence[str], rows: Sequence[Mapping]) -> None:
    """Writes rows to a CSV file as `append_csv` does, in place of what it held, or not at all."""
    path = Path(path)
    partial = path.with_name(f'{path.name}.partial')
    partial.unlink(missing_ok=True)
    append_csv(partial, columns, rows)
    os.replace(partial, path)
