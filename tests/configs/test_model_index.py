"""model-index.yml and its metafiles: every config is there, and the figures are true."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import yaml

import kat_mm.openmmlab  # noqa: F401
from kat_mm.benchmarking.operations import count_parts
from kat_mm.openmmlab.dry_run import prepare

ROOT = Path(__file__).parents[2]
IMPORTS = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
METAFILES = [yaml.safe_load((ROOT / path).read_text()) for path in IMPORTS]
COLLECTIONS = {item['Name']: item for metafile in METAFILES for item in metafile['Collections']}
MODELS = [model for metafile in METAFILES for model in metafile['Models']]
TRAINED = [model for model in MODELS if 'Config' in model]
TOOL = runpy.run_path(str(ROOT / 'tools/get_flops.py'))


def test_openmims_parser_reads_it():
    index = pytest.importorskip('modelindex').load(str(ROOT / 'model-index.yml'))
    assert index.check(silent=True) == []
    assert [model.name for model in index.models] == [model['Name'] for model in MODELS]
    assert {model.in_collection for model in index.models} == {*COLLECTIONS}


def test_wheels_hold_it_where_mim_looks(tmp_path):
    command = [sys.executable, 'setup.py', '-q', 'build_py', '--build-lib', str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    mim = tmp_path / 'kat_mm' / '.mim'
    index = yaml.safe_load((mim / 'model-index.yml').read_text())
    assert all((mim / path).is_file() for path in [*index['Import'], 'tools/train.py'])
    assert all((mim / model['Config']).is_file() for model in TRAINED)


def test_every_config_is_listed_once_by_its_name():
    others = {'_base_', 'studies'}
    configs = [path for path in ROOT.glob('configs/**/*.py') if not others & {*path.parts}]
    listed = sorted(model['Config'] for model in TRAINED)
    assert listed == sorted(str(path.relative_to(ROOT)) for path in configs)
    assert [model['Name'] for model in TRAINED] == [Path(m['Config']).stem for m in TRAINED]
    assert sorted(IMPORTS) == sorted(
        str(path.relative_to(ROOT)) for path in ROOT.glob('configs/*/metafile.yml')
    )


def test_figures_say_whether_they_are_published_or_measured():
    for model in MODELS:
        metadata = COLLECTIONS[model['In Collection']]['Metadata']
        figures = {*model['Metadata']} - {'Architecture'}
        for result in model.get('Results', []):
            figures |= {*result['Metrics']}
        assert {figure.split()[0] for figure in figures} <= {'Measured', 'Published'}
        assert any('Measured' in figure for figure in figures) == ('Measured by' in metadata)


@pytest.mark.parametrize('model', TRAINED, ids=lambda model: model['Name'])
def test_figures_of_a_config(load, model):
    name = model['Config'].removeprefix('configs/')
    config = load(name)
    figures, common = (item['Metadata'] for item in (model, COLLECTIONS[model['In Collection']]))
    size = TOOL['image_size'](config)
    assert common['Measured by'] in (
        command := 'python tools/get_flops.py CONFIG',
        f'{command} --size {size[0]} {size[1]}',
    )
    network, call = prepare(config, size)
    parts = count_parts(network, **call).values()
    assert figures['Measured Parameters (M)'] == round(sum(p.parameters for p in parts) / 1e6, 3)
    assert figures['Measured FLOPs (G)'] == round(sum(p.operations for p in parts) / 1e9, 3)
    published = TOOL['PUBLISHED'].get(name)
    assert figures.get('Published Parameters (M)') == (published and published.millions)
    assert figures.get('Published FLOPs (G)') == (published and published.giga)
    if 'Batch Size' in common:
        assert common['Batch Size'] == config.auto_scale_lr.base_batch_size
        length = config.train_cfg
        assert common.get('Epochs') == length.get('max_epochs')
        assert common.get('Iterations') == length.get('max_iters')


def test_published_weights():
    weights = {model['Name']: model for model in MODELS if 'Config' not in model}
    assert sorted(weights) == timm.list_models('kat_*', pretrained=True)
    for name, model in weights.items():
        published = TOOL['PUBLISHED'][name.split('_')[1]]
        assert model['Weights'].endswith(f'/{timm.get_pretrained_cfg(name).hf_hub_id}')
        assert model['Metadata'] == {
            'Published Parameters (M)': published.millions,
            'Published FLOPs (G)': published.giga,
        }
