import pytest
import torch
from benchmark_rows import has_quartiles, is_ratio, read_rows

pytestmark = pytest.mark.slow


def test_two_configs(run_tool, flat_config, tmp_path):
    twin = tmp_path / 'twin.py'
    twin.write_text(flat_config.read_text() + "model['backbone']['ffn'] = 'mlp'\n")
    options = ('--steps', 2, '--warmup', 1, '--batches', 1, '--csv', 'rows.csv', '--loader')
    workers = ('train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False')
    options = (*options, '--cfg-options', *workers)
    command = (tmp_path, 'benchmark_training.py', flat_config, twin, *options)
    run = run_tool(*command).ended_well()
    assert f'{twin.stem} ' in run.stdout
    assert 'first / this' in run.stdout
    rows = read_rows(tmp_path / 'rows.csv')
    assert [row['config'] for row in rows] == [str(flat_config), str(twin)]
    for row in rows:
        assert has_quartiles(row, ('q1_ms', 'median_ms', 'q3_ms'))
        assert is_ratio(row['first_ms_ratio'], rows[0]['median_ms'], row['median_ms'])
        assert ('peak_mib' in row) == ('busy' in row) == torch.cuda.is_available()
        assert float(row['images_per_s']) == pytest.approx(4000 / float(row['median_ms']), rel=1e-4)
        assert float(row['loader_ms']) > 0
        assert 0 < float(row['waiting']) < 1
    assert 'waiting for it' in run.stdout


def test_random_batches_of_a_detector_and_the_parts_of_mmdet(run_tool, flat_config, tmp_path):
    config = tmp_path / 'packed.py'
    pipeline = "train_dataloader['dataset']['pipeline']"
    config.write_text(flat_config.read_text() + f"{pipeline}.append(dict(type='PackMasks'))\n")
    options = ('--steps', 1, '--warmup', 1, '--batches', 1, '--batch', 2, '--random', '--baseline')
    run = run_tool(tmp_path, 'benchmark_training.py', config, *options).ended_well()
    assert 'packed (stock)' in run.stdout


def test_random_batches_have_no_loader(run_tool, flat_config, tmp_path):
    options = ('--random', '--loader')
    run = run_tool(tmp_path, 'benchmark_training.py', flat_config, *options)
    assert '--random and --loader: a loader needs the data set' in run.stderr


def test_random_batches_with_the_heads_of_mmseg_too(run_tool, segmentation_config, tmp_path):
    config = tmp_path / 'fused.py'
    config.write_text(
        f'_base_ = {str(segmentation_config)!r}\n'
        "model = dict(decode_head=dict(type='FusedFCNHead'))\n"
    )
    options = ('--steps', 1, '--warmup', 1, '--batches', 1, '--batch', 2, '--random', '--baseline')
    command = (tmp_path, 'benchmark_training.py', config, *options, '--csv', 'rows.csv')
    assert 'fused (stock)' in run_tool(*command).ended_well().stdout
    rows = read_rows(tmp_path / 'rows.csv')
    assert [row['config'] for row in rows] == [str(config), f'{config} (stock)']
    assert rows[0]['options'] == 'train_dataloader.batch_size=2'


def test_a_missing_config(run_tool, tmp_path):
    message = run_tool(tmp_path, 'benchmark_training.py', 'zzzzz').error()
    assert message.startswith('config zzzzz does not exist; give a path')
