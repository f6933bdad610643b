import re
from importlib.util import find_spec

import pytest
from benchmark_rows import has_quartiles, is_printed, is_ratio, read_rows
from tool_runs import TOOLS

TINY = (
    *('--device', 'cpu', '--arch', 'tiny', '--size', 16, '--batch', 2, '--infer-batches', 1),
    *('--rounds', 2, '--steps', 1, '--warmup', 1),
)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec('timm'), reason='needs timm')
def test_rows_and_tables(run_tool, tmp_path):
    command = (tmp_path, 'benchmark_backbone.py', *TINY, '--csv', 'rows.csv')
    run = run_tool(*command).ended_well()
    run_tool(*command, '--passes', 'infer', '--autocast', 'none').ended_well()
    assert (tmp_path / 'rows.csv').read_text().count('date,commit,device,torch,model,') == 1
    rows = read_rows(tmp_path / 'rows.csv')
    names = ['kat', 'kat-mlp', 'timm-vit']
    assert [row['model'] for row in rows] == 3 * names
    assert [row['pass'] for row in rows[::3]] == ['train', 'infer', 'infer']
    assert [row['batch'] for row in rows[::3]] == [2, 1, 1]
    assert [row['autocast'] for row in rows[::3]] == ['bf16', 'bf16', 'none']
    for i, row in enumerate(rows):
        assert (row['arch'], row['size'], row['mode']) == ('tiny', 16, 'eager')
        assert has_quartiles(row, ('q1_ms', 'median_ms', 'q3_ms'))
        assert is_ratio(row['first_ms_ratio'], rows[i - i % 3]['median_ms'], row['median_ms'])
        assert not {'peak_mib', 'first_mib_ratio', 'kernel_ms'} & set(
            row
        )  # torch counts that on GPUs
    assert re.match(r'CPU, threads: 1, torch \S+, kat_mm \w+', run.stdout)
    assert 'tiny, train, batch 2, eager' in run.stdout
    assert is_printed(run.stdout, 'kat-mlp', rows[1]['first_ms_ratio'])


def test_without_timm(run_tool, tmp_path):
    """A module of that name that cannot be imported stands for timm."""
    (tmp_path / 'without_timm.py').write_text(
        'import runpy, sys\nsys.modules["timm"] = None\nsys.argv = sys.argv[1:]\n'
        'runpy.run_path(sys.argv[0], run_name="__main__")\n'
    )
    tool = TOOLS / 'benchmark_backbone.py'
    options = (*TINY, '--passes', 'infer')
    run = run_tool(tmp_path, tmp_path / 'without_timm.py', tool, *options).ended_well()
    assert 'timm-vit is left out, as timm is not installed: pip install timm\n' in run.stdout
    assert 'kat-mlp' in run.stdout
    command = (tmp_path, tmp_path / 'without_timm.py', tool, *options, '--models', 'timm-vit')
    assert run_tool(*command).error() == (
        '--models timm-vit: timm is not installed: pip install timm'
    )


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--size', '30'], '--size 30: must be a multiple of the patch size, 16'),
        (['--device', 'cuda:99'], '--device cuda:99: torch finds '),
        (['--csv', '.'], '--csv .: cannot be appended to (Is a directory); name a file'),
    ],
)
def test_bad_options(run_tool, tmp_path, options, message):
    assert run_tool(tmp_path, 'benchmark_backbone.py', *options).error().startswith(message)
