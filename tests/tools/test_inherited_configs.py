"""Users' own configs, which inherit ours by name and may have custom modules."""

import pytest
from mmengine.config import Config
from tool_runs import DETECTION

pytestmark = pytest.mark.slow

SEGMENTATION = """
_base_ = {base!r}
crop = dict(type='RandomCrop', crop_size=(64, 64))
train_dataloader = dict(batch_size=2, dataset=dict(data_root={data_root!r}, pipeline=[
    dict(type='LoadImageFromFile'), dict(type='LoadCheckedLabelMap', num_classes=11), crop,
    dict(type='PackSegInputs'),
]))
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(data_root={data_root!r})
)
test_dataloader = val_dataloader
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(arch=dict(embed_dims=32, num_layers=1, num_heads=2), img_size=64),
    neck=dict(in_channels=32),
)
train_cfg = dict(max_iters=1, val_interval=1)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1))
"""
MY_SCENES = """
from mmdet.datasets import CocoDataset
from mmengine.registry import DATASETS

@DATASETS.register_module()
class MyScenes(CocoDataset):
    METAINFO = dict(classes=tuple('0123456789'), palette=[(1, 2, 3)] * 10)
"""
OLD = ['kat_mm', 'kat_mm.models.roi_extractor', 'kat_mm.datasets.loading']


@pytest.fixture
def detection(data, tmp_path):
    """A detector that inherits one of ours by name and trains for an iteration."""
    path = tmp_path / 'own.py'
    text = DETECTION.format(base='kat_mm::kat_maskrcnn_digits.py', data_root=f'{data}/')
    path.write_text(
        text + "train_cfg = dict(max_epochs=1, val_interval=1)\ntrain_dataloader['batch_size'] = 12"
        '\ntrain_dataloader.update(num_workers=0, persistent_workers=False)\n'
    )
    return path


@pytest.fixture
def segmentation(data, tmp_path):
    """A segmentor that inherits one of ours by name and trains for an iteration."""
    path = tmp_path / 'own.py'
    path.write_text(SEGMENTATION.format(base='kat_mm::kat_upernet_digits.py', data_root=f'{data}/'))
    return path


@pytest.mark.parametrize(
    ('task', 'checkpoint', 'longer'),
    [
        ('detection', 'epoch_1.pth', 'train_cfg.max_epochs=2'),
        ('segmentation', 'iter_1.pth', 'train_cfg.max_iters=2'),
    ],
)
def test_training_and_resuming_from_the_copy(run_tool, tmp_path, request, task, checkpoint, longer):
    own = request.getfixturevalue(task)
    run = run_tool(tmp_path, 'train.py', own, '--work-dir', 'run').ended_well()
    assert 'Failed to' not in run.stdout + run.stderr  # of mmengine, for a scope that is none
    copy = tmp_path / 'run' / 'own.py'
    assert '_base_' not in copy.read_text()
    options = ('--resume', '--cfg-options', longer)
    run = run_tool(tmp_path, 'train.py', copy, '--work-dir', 'run', *options).ended_well()
    assert f'Load checkpoint from {tmp_path}/run/{checkpoint}' in run.stdout.replace('"', '')
    run_tool(tmp_path, 'test.py', own, f'run/{checkpoint}', '--work-dir', 'test').ended_well()


def test_custom_imports_of_a_data_set(run_tool, tmp_path, detection):
    (tmp_path / 'my_scenes.py').write_text(MY_SCENES)
    text = detection.read_text()
    detection.write_text(
        f"{text}custom_imports = dict(imports=['my_scenes'], allow_failed_imports=False)\n"
        "train_dataloader['dataset']['type'] = 'MyScenes'\n"
    )
    message = run_tool(tmp_path, 'train.py', detection).error()
    assert message == (
        f"config {detection}: custom_imports: ModuleNotFoundError: No module named 'my_scenes'; "
        'the folder of a custom module must be in PYTHONPATH'
    )
    with detection.open('a') as file:
        file.write(f'import sys\nsys.path.append({str(tmp_path)!r})\n')
    run_tool(tmp_path, 'train.py', detection).ended_well()


@pytest.mark.parametrize('name', OLD)
def test_names_of_old_custom_imports(run_tool, tmp_path, detection, name):
    with detection.open('a') as file:
        file.write(f'custom_imports = dict(imports=[{name!r}])\n')
    run = run_tool(tmp_path, 'train.py', detection, '--work-dir', 'run').ended_well()
    [line] = [line for line in run.stdout.splitlines() if 'registers nothing' in line]
    assert f'{detection}: custom_imports: {name} registers nothing; kat_mm.openmmlab does' in line
    copy = Config.fromfile(tmp_path / 'run' / 'own.py')
    assert copy.custom_imports.imports == ['kat_mm.openmmlab']


@pytest.mark.parametrize('tool', ['train.py', 'test.py', 'get_flops.py', 'export.py'])
def test_tools_take_names(run_tool, tmp_path, tool):
    rest = {'test.py': ['gone.pth'], 'export.py': ['kat.pt2']}.get(tool, [])
    name = 'kat_mm::coco/kat_tiny_maskrcnn_coco'
    run = run_tool(tmp_path, tool, name, *rest)
    if tool in ('train.py', 'test.py'):
        assert run.error().startswith("data set not found in 'data/coco/'")
    else:
        run.ended_well()
    message = run_tool(tmp_path, tool, 'mmdet::detr/detr_r50_8xb2_150e_coco', *rest).error()
    assert message.startswith(
        'config mmdet::detr/detr_r50_8xb2_150e_coco does not exist; did you mean '
        'mmdet::detr/detr_r50_8xb2-150e_coco.py'
    )
