import re

import numpy as np
import pytest
from benchmark_rows import has_quartiles, is_printed, is_ratio, read_rows
from PIL import Image

TINY = ('--device', 'cpu', '--rounds', 2, '--working-set', 0)
FAST = ('kernel', 'reference', 'gelu', 'copy', 'cast')
OWN = 'kat_mm.rational.reference:rational_reference'


@pytest.fixture(scope='module')
def measured(run_tool, tmp_path_factory):
    """A run that another one with the same CSV file followed: (run, rows)."""
    folder = tmp_path_factory.mktemp('rational')
    options = (*TINY, '--csv', 'new/rational.csv', '--only', *FAST)
    shapes = ('--shapes', '2x5x16', 'cf:2x16x3x3')
    run = run_tool(
        folder,
        *('benchmark_rational.py', *options, *shapes, '--dtypes', 'bf16', 'fp32:bf16'),
        *('--provider', OWN),
    ).ended_well()
    dtype = ('--dtypes', 'fp32', '--order', 6, 3, '--groups', 4)
    run_tool(folder, 'benchmark_rational.py', *options, *shapes, *dtype).ended_well()
    text = (folder / 'new' / 'rational.csv').read_text()
    assert text.count('date,commit,device,torch,provider,pass,') == 1
    return run, read_rows(folder / 'new' / 'rational.csv')


def cases(rows):
    """The rows of each shape, dtype and pass: {provider: row}."""
    result = {}
    for row in rows:
        key = row['shape'], row['dtype'], row['pass']
        result.setdefault(key, {})[row['provider']] = row
    return result


def test_rows(measured):
    by_case = cases(measured[1])
    assert len(by_case) == 2 * 3 * 3
    for (shape, dtype, part), by_provider in by_case.items():
        mixed = dtype == 'fp32:bf16'
        expected = {'kernel', 'reference', 'gelu+cast' if mixed else 'gelu'}
        expected |= {'cast'} if mixed else set()
        expected |= {'copy'} if part != 'saved' else set()
        if dtype != 'fp32' and shape == '2x5x16':
            expected.add(OWN)
        assert set(by_provider) == expected
        for row in by_provider.values():
            assert row['channel_dim'] == (1 if shape == '2x16x3x3' else -1)
            assert (row['order'], row['groups']) == (('6/3', 4) if dtype == 'fp32' else ('5/4', 8))
            assert row['unit'] == ('MiB' if part == 'saved' else 'ms')
            assert part == 'saved' or has_quartiles(row, ('q1', 'median', 'q3'))


def test_ratios(measured):
    for (_, dtype, part), by_provider in cases(measured[1]).items():
        gelu = by_provider['gelu+cast' if dtype == 'fp32:bf16' else 'gelu']
        for row in by_provider.values():
            if row['median']:
                assert is_ratio(row['to_gelu'], row['median'], gelu['median'])
            if part != 'saved':
                assert is_ratio(row['to_floor'], row['median'], by_provider['copy']['median'])


def test_tables(measured):
    run, rows = measured
    assert re.match(r'CPU, threads: 1, torch \S+, kat_mm \w+', run.stdout)
    assert run.stdout.count('forward ms') == 4
    assert f'{OWN} is left out of channels-first shapes' in run.stdout
    assert is_printed(run.stdout, rows[0]['provider'], rows[0]['median'])


@pytest.mark.slow
def test_compiled(run_tool, tmp_path):
    options = ('--only', 'compiled', '--shapes', '2x16', '--dtypes', 'fp32', '--csv', 'rows.csv')
    run_tool(tmp_path, 'benchmark_rational.py', *TINY, *options).ended_well()
    rows = read_rows(tmp_path / 'rows.csv')
    assert [row['pass'] for row in rows] == ['forward', 'backward', 'saved']
    assert not {'to_gelu', 'to_floor'} & set(rows[0])


def test_sweep(run_tool, tmp_path):
    options = ('--sizes', 11, 13, '--plot', 'new/sizes.png', '--csv', 'rows.csv')
    run = run_tool(tmp_path, 'benchmark_rational.py', *TINY, *options).ended_well()
    assert run.stdout.endswith('new/sizes.png\n')
    rows = read_rows(tmp_path / 'rows.csv')
    assert {row['shape'] for row in rows} == {'1x1536', '3x1536', '5x1536'}
    assert {row['provider'] for row in rows} == {'kernel', 'gelu', 'copy'}
    picture = Image.open(tmp_path / 'new' / 'sizes.png')
    assert picture.format == 'PNG'
    for half in np.array_split(np.asarray(picture.convert('RGB')).astype(int), 2, axis=1):
        assert (np.ptp(half, axis=2) > 60).sum() > 500  # lines, which alone are coloured


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--shapes', '2xx16'], '--shapes 2xx16: must be sizes such as 128x197x768, or cf:8x'),
        (['--shapes', 'cf:16'], '--shapes cf:16: must be sizes'),
        (['--shapes', '2x12'], '--shapes 2x12: 12 channels cannot be divided into --groups 8'),
        (['--dtypes', 'bf16:fp32'], '--dtypes bf16:fp32: known are bf16, fp16, fp32, fp32:bf16, '),
        (['--order', '9', '4'], '--order 9 4: both lie between 1 and 8'),
        (['--plot', 'a.png'], '--plot a.png: draws the times of --sizes; add that'),
        (['--sizes', '--plot', 'a.pdf'], '--plot a.pdf: the name must end in .png'),
        (['--sizes', '3'], '--sizes 3: give the lowest and the highest power, or none'),
        (['--sizes', '--shapes', '2x16'], '--sizes brings its own shapes and dtype: drop --shapes'),
        (['--device', 'gpu'], '--device gpu: must be cuda or cpu'),
        (['--csv', '.'], '--csv .: cannot be appended to (Is a directory); name a file'),
        (['--provider', 'kat_mm'], '--provider kat_mm: must be module:callable, such as '),
        (['--provider', 'gone:f'], '--provider gone:f: gone cannot be imported (ModuleNotFound'),
        (
            ['--only', 'cast', '--dtypes', 'bf16', '--shapes', '2x16'],
            '--only cast: does nothing where the dtype stays the same; add kernel, or --dtypes ',
        ),
        (
            [*TINY, '--only', 'copy', '--shapes', '2x16', '--provider', 'math:hypot'],
            'provider math:hypot fails for 2x16 bfloat16 (',
        ),
    ],
)
def test_bad_options(run_tool, tmp_path, options, message):
    assert run_tool(tmp_path, 'benchmark_rational.py', *options).error().startswith(message)


def test_a_csv_file_of_something_else(run_tool, tmp_path):
    (tmp_path / 'rows.csv').write_text('name,age\n')
    message = run_tool(tmp_path, 'benchmark_rational.py', '--csv', 'rows.csv').error()
    assert message.startswith('--csv rows.csv: has the columns name,age, the new rows date,commit,')
    assert message.endswith('choose another file or move this one away')
