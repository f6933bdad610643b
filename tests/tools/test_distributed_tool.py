"""Training in two processes on one machine."""

import pytest
from tool_runs import TOOLS, run_alone

from kat_mm.openmmlab.config_checks import check_checkpoint
from kat_mm.openmmlab.curves import read_scalars
from kat_mm.weights.reading import read_checkpoint

pytestmark = pytest.mark.slow


def test_two_processes(flat_config, tmp_path):
    run = run_alone(
        tmp_path,
        *('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2'),
        *(TOOLS / 'train.py', flat_config, '--launcher', 'pytorch', '--work-dir', 'run'),
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
