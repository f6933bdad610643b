import json

import pytest
import torch
from mmengine.config import Config
from PIL import Image

from kat_mm.openmmlab.analysis.models import redraw

pytestmark = pytest.mark.slow
BACKBONE = 'model.backbone'
PICTURES = ('effective_rank.png', 'histograms.png', 'landscape.png', 'singular_values.png')
QUICK = ('--points', 3, '--batches', 1, '--images', 2)


@pytest.fixture(scope='module')
def gated(run_tool, segmentation_config, tmp_path_factory):
    """A segmentor with gated attention in windows: (config, work dir, settings)."""
    settings = [
        'train_cfg.max_iters=4',
        'param_scheduler.0.end=9',
        'model.decode_head.norm_cfg.type=BN',
        'default_hooks.checkpoint.interval=1',
        'default_hooks.checkpoint.max_keep_ckpts=-1',
        f'{BACKBONE}.arch.num_layers=2',
        f'{BACKBONE}.attention.type=KArAt',
        f'{BACKBONE}.attention.base=softmax',
        f'{BACKBONE}.attention.window_size=3',
        f'{BACKBONE}.attention.global_blocks=[1]',
    ]
    work_dir = tmp_path_factory.mktemp('gated')
    command = ('train.py', segmentation_config, '--work-dir', work_dir, '--cfg-options', *settings)
    run_tool(work_dir, *command).ended_well()
    return segmentation_config, work_dir, settings


def test_a_detector_with_softmax(run_tool, trained, detection_config, tmp_path):
    """Its folder has three checkpoints."""
    run = run_tool(tmp_path, 'analyze.py', detection_config, trained[1], *QUICK, '-o', 'out')
    assert run.ended_well().stdout.splitlines()[-1] == 'out/analysis.json'
    result = json.loads((tmp_path / 'out' / 'analysis.json').read_text())
    assert result['notes'] == {'units': 'left out: MaskRCNN has no learnable functions of KArAt'}
    assert {path.name for path in (tmp_path / 'out').glob('*.png')} == {
        *PICTURES,
        *(f'attention_block{i}.png' for i in range(2)),
    }
    for path in (tmp_path / 'out').glob('*.png'):
        assert min(Image.open(path).size) > 400
    for block in result['spectra']['blocks']:
        ranks = block['effective_rank']
        assert ranks['weights'] == ranks['softmax']
        assert block['negative_weights'] == [0, 0]
    assert 'relative_change' in result['histograms']['kinds']['rational: numerators']
    landscape = result['landscape']
    # From the start that was drawn again to the last epoch.
    assert [point['iteration'] for point in landscape['path']] == [0, 3, 6, 9]
    assert landscape['path'][-1]['place'] == [0, 0]
    final = landscape['final']['loss']
    assert landscape['path'][-1]['loss'] == pytest.approx(final, abs=1e-6)
    assert landscape['path'][-1]['loss_of_projection'] == pytest.approx(final, abs=1e-6)
    i, j = (axis.index(0) for axis in landscape['axes'])
    assert landscape['losses'][i][j] == pytest.approx(final, abs=1e-6)


def test_a_segmentor_with_gated_attention(run_tool, gated, tmp_path):
    config, work_dir, settings = gated
    chosen = ('--blocks', 1, '--heads', 0, '--queries', '0.1,0.9', '--device', 'cpu')
    options = (*QUICK, *chosen, '--cfg-options', *settings)
    run = run_tool(tmp_path, 'analyze.py', config, work_dir / 'iter_4.pth', *options)
    run.ended_well()
    out = work_dir / 'analysis'
    result = json.loads((out / 'analysis.json').read_text())
    assert result['notes'] == {}
    assert {path.name for path in out.glob('*.png')} == {
        *PICTURES,
        *('attention_block1.png', 'units.png'),
    }
    assert result['attention']['blocks']['1']['heads'] == [0]
    blocks = result['spectra']['blocks']
    assert [block['window'] for block in blocks] == [[3, 3], None]
    assert [block['attention'] for block in blocks] == ['softmax + gated KArAt'] * 2
    assert result['units']['has_start']
    assert set(result['units']['layers']) == {
        f'backbone.blocks.{i}.attn.operator.units' for i in range(2)
    }
    assert result['landscape']['batch_norms'] > 0
    assert [point['iteration'] for point in result['landscape']['path']] == [0, 1, 2, 3, 4]


def test_an_image_file_and_a_named_start(run_tool, gated, data, tmp_path):
    config, work_dir, settings = gated
    image = next((data / 'images' / 'val').iterdir())
    options = ('--only', 'attention', 'units', '--image', image, '--start', work_dir / 'iter_1.pth')
    command = (config, work_dir, '-o', tmp_path, *options, '--cfg-options', *settings)
    run_tool(tmp_path, 'analyze.py', *command).ended_well()
    result = json.loads((tmp_path / 'analysis.json').read_text())
    assert result['attention']['image'] == image.name
    assert result['units']['has_start']
    assert 'spectra' not in result


@pytest.mark.parametrize('segmentation', [False, True])
def test_the_start_is_drawn_again_exactly(
    run_tool, detection_config, segmentation_config, tmp_path, segmentation
):
    """A run that learns nothing keeps it."""
    config = segmentation_config if segmentation else detection_config
    rates = ('optim_wrapper.optimizer.lr=0', 'optim_wrapper.optimizer.weight_decay=0')
    length = 'train_cfg.max_iters=1' if segmentation else 'train_cfg.max_epochs=1'
    interval = 'default_hooks.checkpoint.interval=1'
    attention = f'{BACKBONE}.attention.type=KArAt'
    options = ('--cfg-options', *rates, length, interval, attention)
    run_tool(tmp_path, 'train.py', config, '--work-dir', tmp_path / 'run', *options).ended_well()
    [path] = (tmp_path / 'run').glob('*_1.pth')
    settings = Config.fromfile(config)
    settings.model.backbone.attention = dict(type='KArAt', window_size=0)
    start = redraw(settings, path, torch.device('cpu'))
    weights = torch.load(path, weights_only=False)['state_dict']
    statistics = ('running_mean', 'running_var', 'num_batches_tracked')
    for name, value in start.items():
        assert torch.equal(value, weights[name]) or name.endswith(statistics), name


def test_mistakes(run_tool, trained, detection_config, segmentation_config, tmp_path):
    def error(*arguments):
        return run_tool(tmp_path, 'analyze.py', *arguments, '-o', tmp_path / 'out').error()

    folder, last = trained[1], trained[1] / 'epoch_3.pth'
    assert f'folder {tmp_path} has no checkpoint (epoch_*.pth, iter_*.pth)' in error(
        detection_config, tmp_path
    )
    assert 'does not exist' in error(detection_config, folder / 'epoch_7.pth')
    assert f'checkpoint {last} does not fit the config' in error(segmentation_config, last)
    few = error(detection_config, folder / 'epoch_2.pth', '--only', 'landscape')
    assert 'has 2 checkpoints of a run up to epoch_2.pth, and a plane needs three' in few
    assert 'no learnable functions of KArAt' in error(detection_config, last, '--only', 'units')
    only = ('--only', 'attention')
    assert '--blocks=(2,) must be different indices of the 2 blocks' in error(
        detection_config, last, *only, '--blocks', 2
    )
    assert '--heads=(5,) must be different indices of the 2 heads' in error(
        detection_config, last, *only, '--heads', 5
    )
    assert 'the test data has 4 images, 0 to 3' in error(
        detection_config, last, *only, '--image', 9
    )
    assert '--image here.png: must be an image file or a number' in error(
        detection_config, last, *only, '--image', 'here.png'
    )
    assert f'checkpoint {tmp_path / "no.pth"} does not exist' in error(
        detection_config, last, '--only', 'histograms', '--start', tmp_path / 'no.pth'
    )
    assert '--points 1: a landscape has 2' in error(detection_config, last, '--points', 1)
    run = run_tool(tmp_path, 'analyze.py', detection_config, last, '-o', last)
    assert run.error().startswith(f'--out {last}: cannot be a folder (FileExistsError')
