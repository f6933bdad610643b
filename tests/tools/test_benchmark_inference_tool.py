import pytest
from benchmark_rows import has_quartiles, is_ratio, read_rows

pytestmark = pytest.mark.slow


def test_a_detector_with_its_parts_and_those_of_mm(run_tool, flat_config, tmp_path):
    options = ('--steps', 2, '--warmup', 1, '--batches', 1, '--baseline', '--csv', 'rows.csv')
    workers = ('--cfg-options', 'test_dataloader.num_workers=0')
    persistent = ('test_dataloader.persistent_workers=False',)
    command = (tmp_path, 'benchmark_inference.py', flat_config, *options, *workers, *persistent)
    assert f'{flat_config.stem} (stock)' in run_tool(*command).ended_well().stdout
    rows = read_rows(tmp_path / 'rows.csv')
    assert [row['config'] for row in rows] == [str(flat_config), f'{flat_config} (stock)']
    for row in rows:
        assert has_quartiles(row, ('q1_ms', 'median_ms', 'q3_ms'))
        assert is_ratio(row['first_ms_ratio'], rows[0]['median_ms'], row['median_ms'])
    assert rows[0]['found'] == rows[1]['found']


def test_random_images_for_a_segmentor(run_tool, segmentation_config, tmp_path):
    options = ('--steps', 1, '--warmup', 1, '--batches', 1, '--random', '--amp', '--csv', 'r.csv')
    command = (tmp_path, 'benchmark_inference.py', segmentation_config, *options)
    run_tool(*command).ended_well()
    [row] = read_rows(tmp_path / 'r.csv')
    assert row['options'] == '--batch=1 --amp'
    assert 'found' not in row
