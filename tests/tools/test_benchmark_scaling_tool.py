import pytest
import torch
from benchmark_rows import has_quartiles, is_ratio, read_rows

pytestmark = pytest.mark.slow

CPU = ('benchmark_scaling.py', '--cpu', '--steps', 3, '--warmup', 1, '--batch', 2)
IN_PROCESS = ('train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False')


def test_random_batches_on_one_and_two_processes(run_tool, segmentation_config, tmp_path):
    options = (segmentation_config, '--processes', 2, 1, '--random', '--csv', 'rows.csv')
    run = run_tool(tmp_path, *CPU, *options, '--plot', 'plots/scaling.png').ended_well()
    one, two = read_rows(tmp_path / 'rows.csv')
    for row, count in ((one, 1), (two, 2)):
        assert (row['processes'], row['batch'], row['steps']) == (count, 2, 3)
        assert (row['engine'], row['data']) == ('ddp', 'random')
        assert row['options'] == 'train_dataloader.batch_size=2'
        assert row['device'].startswith('CPU')
        assert has_quartiles(row, ('q1_ms', 'median_ms', 'q3_ms'))
        assert is_ratio(row['images_per_s'], 1e3 * 2 * count, row['median_ms'])
        assert is_ratio(row['efficiency'], row['images_per_s'] / count, one['images_per_s'])
        assert not {'waiting', 'peak_mib'} & set(row)
    assert one['communication'] == 0
    assert 0 < two['communication'] < 1
    assert 'efficiency' in run.stdout
    assert (tmp_path / 'plots' / 'scaling.png').read_bytes().startswith(b'\x89PNG')


def test_the_loader_of_a_detector(run_tool, flat_config, tmp_path):
    options = (flat_config, '--processes', 2, '--csv', 'rows.csv', '--cfg-options', *IN_PROCESS)
    run_tool(tmp_path, *CPU, *options).ended_well()
    [row] = read_rows(tmp_path / 'rows.csv')
    assert (row['processes'], row['data']) == (2, 'loader')
    assert 0 < row['waiting'] < 1
    assert 0 < row['communication'] < 1
    assert 'efficiency' not in row  # against one process, which was not asked for


def test_an_error_of_a_rank_is_one_line(run_tool, segmentation_config, tmp_path):
    options = (segmentation_config, '--processes', 2, '--random')
    size = 'model.data_preprocessor.size=None'
    message = run_tool(tmp_path, *CPU, *options, '--cfg-options', size).error()
    assert message.startswith('segmentation, ddp, 2 processes, rank ')
    assert 'random batches need a segmentor' in message


def test_wrong_options(run_tool, flat_config, tmp_path):
    run = run_tool(tmp_path, 'benchmark_scaling.py', flat_config, '--cpu')
    assert '--cpu: give the numbers of processes, such as --processes 1 2' in run.stderr
    message = run_tool(tmp_path, *CPU, 'zzzzz', '--processes', 1).error()
    assert message.startswith('config zzzzz does not exist; give a path')


@pytest.mark.skipif(torch.cuda.is_available(), reason='is about machines without a GPU')
def test_a_machine_without_gpus(run_tool, flat_config, tmp_path):
    message = run_tool(tmp_path, 'benchmark_scaling.py', flat_config).error()
    assert message == 'torch finds no GPU; to measure without: --cpu --processes 1 2'
