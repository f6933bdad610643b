"""The published figures, and the table that the tool prints."""

import re
import runpy

import pytest
from tool_runs import ROOT, TOOLS

PUBLISHED = runpy.run_path(str(TOOLS / 'get_flops.py'))['PUBLISHED']
CONFIGS = [name for name in PUBLISHED if name.endswith('.py')]


def figures(run) -> list[float]:
    """Returns the sums of a table: parameters in millions, FLOPs in G, without products in G."""
    stdout = run.ended_well().stdout
    sums = re.search(r'sum +│ +([\d.]+) │ +([\d.]+) │', stdout).groups()
    rows = re.findall(r'│ \S.*? +│ +([\d.]+) │ +([\d.]+) │ +([\d.]+)% │', stdout)
    parameters, flops, shares = (sum(map(float, column)) for column in zip(*rows, strict=True))
    assert parameters == pytest.approx(float(sums[0]), abs=0.01)
    assert flops == pytest.approx(float(sums[1]), abs=0.01)
    assert shares == pytest.approx(100, abs=1)
    [without] = re.findall(r'without the attention products ([\d.]+) G', stdout)
    return [*map(float, sums), float(without)]


@pytest.mark.parametrize(
    ('arch', 'millions', 'giga'),
    [('tiny', 5.7, 1.13), ('small', 22.1, 4.35), ('base', 86.6, 17.06)],
)
def test_classification_at_224(run_tool, tmp_path, arch, millions, giga):
    run = run_tool(tmp_path, 'get_flops.py', arch)
    parameters, flops, without = figures(run)
    assert round(parameters, 1) == millions
    assert without == giga
    assert (PUBLISHED[arch].millions, PUBLISHED[arch].giga) == (millions, giga)
    width = {'tiny': 192, 'small': 384, 'base': 768}[arch]
    assert flops - without == pytest.approx(12 * 2 * 197**2 * width / 1e9, abs=0.01)
    assert f'Published: {millions} M parameters' in run.stdout


@pytest.mark.parametrize('name', CONFIGS)
def test_a_difference_to_the_published_figures_is_explained(run_tool, tmp_path, name):
    """More than 1.5% of the parameters, or 3% of the FLOPs."""
    path = ROOT / 'configs' / name
    if not path.exists():
        pytest.skip('there is no such config')
    run = run_tool(tmp_path, 'get_flops.py', path)
    published = PUBLISHED[name]
    parameters, flops, _ = figures(run)
    by_parameters, by_flops = parameters / published.millions - 1, flops / published.giga - 1
    assert ('Parameters: ' in published.note) == (abs(by_parameters) > 0.015)
    assert ('FLOPs: ' in published.note) == (abs(by_flops) > 0.03)
    text = ' '.join(run.stdout.split())
    assert f'(here {by_parameters:+.1%}), {published.giga} G FLOPs (here {by_flops:+.1%}).' in text
    assert ' '.join(published.note.split()) in text


def test_published_figures_are_of_a_config_as_it_is(run_tool, tmp_path):
    path = ROOT / 'configs' / CONFIGS[0]
    for options in (
        ['--size', '800', '1280'],
        ['--cfg-options', 'model.backbone.frozen_stages=1'],
    ):
        run = run_tool(tmp_path, 'get_flops.py', path, *options)
        figures(run)
        assert 'Published' not in run.stdout


@pytest.mark.parametrize('kind', ['detection', 'segmentation'])
def test_a_config_at_any_size(run_tool, flat_config, segmentation_config, tmp_path, kind):
    """Maps of 128 x 128 positions and a class token, of 32 channels."""
    config, side, blocks = {
        'detection': (flat_config, 1024, 2),
        'segmentation': (segmentation_config, 2048, 1),
    }[kind]
    run = run_tool(tmp_path, 'get_flops.py', config, '--size', side, side)
    _, flops, without = figures(run)
    tokens = 128**2 + 1
    assert flops - without == pytest.approx(blocks * 2 * tokens**2 * 32 / 1e9, abs=0.01)
    rational = blocks * tokens * (32 + 128) * 21 / 1e9
    assert re.search(rf'rational activations +│ +0\.00\d │ +{rational:.3f} │', run.stdout)
    assert run.stdout.splitlines()[0] == f'{config}, {side} x {side}'


def test_the_size_is_that_of_the_test_pipeline(run_tool, segmentation_config, tmp_path):
    options = ['--cfg-options', 'test_dataloader.dataset.pipeline.1.scale=(96,64)']
    run = run_tool(tmp_path, 'get_flops.py', segmentation_config, *options).ended_well()
    assert run.stdout.splitlines()[0] == f'{segmentation_config}, 64 x 96'


def test_an_image_smaller_than_a_patch(run_tool, segmentation_config, tmp_path):
    run = run_tool(tmp_path, 'get_flops.py', segmentation_config, '--size', '64', '7')
    assert run.error().startswith('images of 64 x 7 pixels are smaller than a patch')
    message = run_tool(tmp_path, 'get_flops.py', 'tiny', '--size', '64', '7').error()
    assert message.startswith('img_size=(64, 7) is smaller than a patch')


def test_a_config_without_a_model(run_tool, tmp_path):
    (tmp_path / 'data.py').write_text('test_dataloader = None\n')
    message = run_tool(tmp_path, 'get_flops.py', 'data.py').error()
    assert message == 'config data.py has no model to count'


def test_a_config_without_a_size(run_tool, flat_config, tmp_path):
    options = ['--cfg-options', 'test_dataloader.dataset.pipeline=None']
    message = run_tool(tmp_path, 'get_flops.py', flat_config, *options).error()
    assert message == 'the test pipeline of the config names no size; give one: --size H W'


def test_a_model_that_needs_values(run_tool, tmp_path):
    base = 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'
    (tmp_path / 'detr.py').write_text(f'_base_ = {base!r}\n')
    command = (tmp_path, 'get_flops.py', 'detr.py', '--size', '64', '96')
    message = run_tool(*command).error()
    assert message.startswith('DeformableDETR cannot run on 64 x 96 pixels on the meta device (')
    assert message.endswith('; try another --size, or --device cpu if it needs values')
    assert 'decoder: attention, products' in run_tool(*command, '--device', 'cpu').stdout


def test_the_cpu_counts_the_same(run_tool, flat_config, tmp_path):
    command = (tmp_path, 'get_flops.py', flat_config, '--size', '60', '90')
    runs = [run_tool(*command, '--device', device).ended_well() for device in ('meta', 'cpu')]
    assert runs[0].stdout == runs[1].stdout
