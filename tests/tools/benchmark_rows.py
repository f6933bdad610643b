"""Reads the CSV files of the benchmark tools."""

import csv

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
