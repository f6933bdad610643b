"""Training and testing in two processes on one machine."""

import pytest
from tool_runs import TOOLS, VAL, run_alone

from kat_mm.openmmlab.config_checks import check_checkpoint
from kat_mm.openmmlab.curves import read_scalars
from kat_mm.weights.reading import read_checkpoint

pytestmark = pytest.mark.slow


def run_two(cwd, tool, *arguments):
    return run_alone(
        cwd,
        *('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2'),
        *(TOOLS / tool, *arguments, '--launcher', 'pytorch'),
    )


def test_two_processes(flat_config, tmp_path):
    run = run_two(
        tmp_path,
        *('train.py', flat_config, '--work-dir', 'run'),
        *('--cfg-options', 'train_dataloader.batch_size=3'),
        *('train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False'),
        *('train_cfg.max_epochs=1', 'train_cfg.val_interval=1'),
    ).ended_well()
    assert run.stdout.count('Saving checkpoint at 1 epochs') == 1
    training, validation = read_scalars(tmp_path / 'run')
    assert [record['step'] for record in training] == [1, 2]  # 12 images, 2 x 3 an iteration
    assert 'coco/bbox_mAP' in validation[0]
    path = tmp_path / 'run' / 'epoch_1.pth'
    check_checkpoint(str(path), resume=True)
    weights = read_checkpoint(path)['state_dict']
    assert 'backbone.blocks.0.mlp.act1.weight_numerator' in weights


def test_a_segmentor_with_synchronised_norms(segmentation_config, run_tool, tmp_path):
    """These need GPUs; and each process writes label maps of its own."""
    (tmp_path / 'own.py').write_text(
        f"_base_ = '{segmentation_config}'\n"
        "model = dict(decode_head=dict(norm_cfg=dict(type='SyncBN')))\n"
    )
    run_tool(tmp_path, 'train.py', 'own.py', '--work-dir', 'run').ended_well()
    arguments = ('own.py', 'run/iter_2.pth', '--work-dir', 'run', '--out', 'new/maps')
    run = run_two(tmp_path, 'test.py', *arguments).ended_well()
    assert 'no GPU: SyncBN becomes BN' in run.stdout + run.stderr
    maps = sorted(path.name for path in (tmp_path / 'new' / 'maps').iterdir())
    assert maps == [f'{i:06d}.png' for i in range(VAL)]
