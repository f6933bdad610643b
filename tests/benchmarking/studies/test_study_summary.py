"""Tables have numpy's numbers, the CSV file has all, and the picture shows each seed."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from kat_mm.benchmarking.studies.plot import plot_scores
from kat_mm.benchmarking.studies.summary import (
    COLUMNS,
    finished,
    mean_and_spread,
    tables,
    write_rows,
)

SCORES = {('narrow', 0): 0.41, ('narrow', 1): 0.47, ('wide', 0): 0.52, ('tuned', 1): None}


@pytest.fixture
def rows(study, runs):
    """Three runs that are finished, and one that diverged."""
    for run in runs:
        if (key := (run.variant.name, run.seed)) in SCORES:
            score = SCORES[key]
            found = {'nan': 1} if score is None else {'mIoU': score, 'loss': 2 * score, 'nan': 0}
            facts = dict(seconds=10.0, attempts=1, device='CPU', date='now')
            run.folder.mkdir(parents=True)
            (run.folder / 'result.json').write_text(json.dumps({**found, **facts}))
    return finished(study, runs)


def test_rows(rows):
    assert [(row['variant'], row['seed']) for row in rows] == [*SCORES]
    assert [row['after'] for row in rows] == ['', '', '', 'wide']
    assert {row['study'] for row in rows} == {'widths'}
    assert len({row['settings'] for row in rows}) == len(rows)


def test_means_and_spreads():
    values = [0.41, 0.47, 0.445]
    assert mean_and_spread(values) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert mean_and_spread([0.4]) == (0.4, None)


def test_table(study, rows):
    [table] = tables(study, rows)
    columns = {column.header: [*column.cells] for column in table.columns}
    values = [0.41, 0.47]
    mean, spread = np.mean(values), np.std(values, ddof=1)
    assert columns['variant'] == ['narrow', 'Wide', 'tuned']
    assert columns['seeds'] == ['2 of 2', '1 of 2', '1 of 2']
    assert columns['mIoU'] == [f'{mean:.3f} ± {spread:.3f}', '0.520', '']
    assert columns['loss'] == [f'{2 * mean:.3f} ± {2 * spread:.3f}', '1.040', '']
    assert columns['NaN'] == ['0', '0', '1']
    assert columns['s'] == ['10', '10', '10']
    Console().print(table)


def test_csv(rows, tmp_path):
    for _ in range(2):  # it is written anew
        write_rows(tmp_path / 'out' / 'widths.csv', rows)
    with (tmp_path / 'out' / 'widths.csv').open(newline='') as file:
        read = [*csv.DictReader(file)]
    assert [*read[0]] == [*COLUMNS]
    assert [float(row['mIoU']) if row['mIoU'] else None for row in read] == [*SCORES.values()]
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['widths.csv']


def test_csv_of_nothing(tmp_path):
    write_rows(tmp_path / 'widths.csv', [])
    assert (tmp_path / 'widths.csv').read_text() == ','.join(COLUMNS) + '\n'


def test_picture(study, rows, tmp_path):
    plot_scores(study, rows, tmp_path / 'out' / 'widths.png')
    assert Image.open(tmp_path / 'out' / 'widths.png').size[0] > 500
