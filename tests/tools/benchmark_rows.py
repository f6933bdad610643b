"""Reads the CSV files of the benchmark tools."""

import csv
import re

import pytest


def read_rows(path):
    """The rows of a CSV file, with figures as numbers and empty fields left out."""
    with open(path, newline='') as file:
        return [{k: number(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def number(text):
    try:
        return float(text)
    except ValueError:
        return text


def has_quartiles(row, names):
    q1, median, q3 = (row[name] for name in names)
    return 0 < q1 <= median <= q3


def is_ratio(value, numerator, denominator):
    return value == pytest.approx(numerator / denominator, rel=1e-4)  # of figures of 6 digits


def is_printed(stdout, name, value):
    """Whether the first table row of that name shows the value, which the file rounds otherwise."""
    row = next(line for line in stdout.splitlines() if line.startswith(f'│ {name} '))
    cells = [float(cell) for cell in re.findall(r'\d+(?:\.\d+)?', row.split('│', 2)[2])]
    return any(
        cell == pytest.approx(value, rel=6e-4, abs=6e-4 if value > 0.1 else 0) for cell in cells
    )
