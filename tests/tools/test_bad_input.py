"""What the user can mend is reported in one line, with the way out, before any work starts."""

import os
import shutil

import pytest
import torch
from tool_runs import ROOT

from kat_mm.models import ARCHS


class Malice:
    """Pickles as a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture
def checkpoints(tmp_path):
    """A folder with one whole checkpoint and several bad ones."""
    content = {'state_dict': {'weight': torch.zeros(1000)}, 'meta': {'epoch': 1, 'iter': 3}}
    torch.save(content, tmp_path / 'whole.pth')
    shutil.copy(tmp_path / 'whole.pth', tmp_path / 'truncated.pth')
    os.truncate(tmp_path / 'truncated.pth', 2000)
    (tmp_path / 'text.pth').write_text('<html>not found</html>')
    torch.save({**content, 'code': Malice(f'touch {tmp_path}/malice')}, tmp_path / 'code.pth')
    return tmp_path


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_missing_config(run_tool, tool):
    checkpoint = ['model.pth'] if tool == 'test.py' else []
    run = run_tool(ROOT, tool, 'configs/kat_mask_rcnn_coco.py', *checkpoint)
    assert run.error() == (
        'config configs/kat_mask_rcnn_coco.py does not exist; did you mean '
        'configs/kat_maskrcnn_coco.py or configs/karat_maskrcnn_coco.py or '
        'kat_mm::coco/kat_tiny_maskrcnn_coco.py?'
    )


def test_missing_config_unlike_any(run_tool):
    message = run_tool(ROOT, 'train.py', 'zzzzz').error()
    assert message == (
        'config zzzzz does not exist; give a path, kat_mm::NAME or mmdet::FOLDER/NAME'
    )


@pytest.mark.parametrize(
    ('text', 'reason'), [("_base_ = './gone.py'\n", 'gone.py'), ('model = dict(\n', 'never closed')]
)
def test_unreadable_config(run_tool, tmp_path, text, reason):
    (tmp_path / 'own.py').write_text(text)
    message = run_tool(tmp_path, 'train.py', 'own.py').error()
    assert message.startswith('config own.py cannot be read: ')
    assert reason in message


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_missing_data_set(run_tool, tool, flat_config, checkpoints):
    checkpoint = ['whole.pth'] if tool == 'test.py' else []
    options = [f'{split}_dataloader.dataset.data_root=data/coco/' for split in ('train', 'test')]
    run = run_tool(checkpoints, tool, flat_config, *checkpoint, '--cfg-options', *options)
    assert run.error() == (
        "data set not found in 'data/coco/': data/coco does not exist. Put or link the data set "
        'there, or try the embedded data set: make demo'
    )


def test_missing_digit_scenes(run_tool, flat_config, tmp_path):
    option = 'train_dataloader.dataset.data_root=data/digit_scenes'
    message = run_tool(tmp_path, 'train.py', flat_config, '--cfg-options', option).error()
    assert message.endswith('Make it with: python tools/make_digit_scenes.py data/digit_scenes')


def test_missing_part_of_a_data_set(run_tool, flat_config, data, tmp_path):
    option = 'val_dataloader.dataset.ann_file=annotations/test.json'
    message = run_tool(tmp_path, 'train.py', flat_config, '--cfg-options', option).error()
    assert f'{data}/annotations/test.json does not exist' in message


def test_missing_annotations_of_a_metric(run_tool, flat_config, tmp_path):
    option = 'val_evaluator.ann_file=gone.json'
    message = run_tool(tmp_path, 'train.py', flat_config, '--cfg-options', option).error()
    assert message == 'val_evaluator.ann_file: gone.json does not exist'


def test_unknown_arch(run_tool, flat_config, tmp_path):
    option = 'model.backbone.arch=huge'
    message = run_tool(tmp_path, 'train.py', flat_config, '--cfg-options', option).error()
    assert message == (
        f"unknown arch 'huge'; known: {', '.join(ARCHS)}, or a dict of embed_dims, num_layers, "
        'num_heads'
    )


@pytest.mark.parametrize(
    ('option', 'part'),
    [
        ('model.backbone.ffn=kan', "unknown ffn 'kan'; known: gr_kan, mlp"),
        ('model.backbone.frozen_stages=9', 'frozen_stages=9 must be a whole number from -1 to 2'),
        ('model.backbone.out_indices=9', 'must be different indices of the 2 blocks'),
        (
            'model.backbone.ffn.activation.num_groups=5',
            'num_groups=5 does not divide embed_dims=32; choose',
        ),
        ('model.backbone.arch.num_heads=3', 'num_heads=3 does not divide embed_dims=32; choose'),
        (
            'model.backbone.ffn.act_init=swish',
            'act_init must be a pair, what act1 and act2 start',
        ),
        ('model.backbone.img_size=4', 'img_size=4 is smaller than a patch, patch.size=8'),
        ('model.neck.out_channels=0', 'out_channels[0]=0 must be a whole number from 1 on'),
        ('model.neck.strides=(4,8,12)', 'no pyramid level at stride 12 from a map of stride 8'),
        ('optim_wrapper.paramwise_cfg.layer_decay_rate=2', 'layer_decay_rate must lie in (0, 1]'),
    ],
)
def test_other_mistakes_in_the_model(run_tool, flat_config, tmp_path, option, part):
    run = run_tool(tmp_path, 'train.py', flat_config, '--cfg-options', option)
    assert run.error().startswith(part) or f' {part}' in run.error()


def test_images_that_the_backbone_cannot_take(run_tool, segmentation_config, tmp_path):
    """The size of mmseg's crops is known before training starts."""
    options = ('--cfg-options', 'model.data_preprocessor.size=(8,128)')
    run = run_tool(tmp_path, 'train.py', segmentation_config, *options)
    assert run.error() == (
        'images of 8 x 128 pixels are smaller than a patch, patch.size=16: enlarge them or choose '
        'a smaller patch'
    )
    assert 'Iter(train)' not in run.stdout + run.stderr


def test_maps_that_the_head_cannot_take(run_tool, segmentation_config, tmp_path):
    options = ('--cfg-options', 'model.decode_head.in_channels=48')
    run = run_tool(tmp_path, 'train.py', segmentation_config, *options)
    assert run.error().startswith('decode_head: in_index=-1 with 48 in_channels does not fit')
    assert 'Iter(train)' not in run.stdout + run.stderr


def test_auto_scale_lr_without_a_base(run_tool, flat_config, tmp_path):
    message = run_tool(tmp_path, 'train.py', flat_config, '--auto-scale-lr').error()
    assert message.startswith(
        f'--auto-scale-lr: {flat_config} has no auto_scale_lr.base_batch_size'
    )
    assert 'auto_scale_lr=dict(base_batch_size=...)' in message


READERS = {
    'resume': ['train.py', '--resume', '{}'],
    'test': ['test.py', '{}'],
    'load_from': ['train.py', '--cfg-options', 'load_from={}'],
    'init_cfg': [
        *('train.py', '--cfg-options', 'model.backbone.init_cfg.type=Pretrained'),
        'model.backbone.init_cfg.checkpoint={}',
    ],
}
DAMAGED = 'it is cut short, damaged or no checkpoint. Copy or download it again'


@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('truncated.pth', f'cannot be read: {DAMAGED}'),
        ('text.pth', f'cannot be read: {DAMAGED}'),
        (
            'code.pth',
            'cannot be read: it holds posix.system, which is refused as it could run code',
        ),
        ('gone.pth', 'does not exist'),
    ],
)
def test_unreadable_checkpoint(run_tool, flat_config, checkpoints, reader, name, reason):
    tool, *arguments = READERS[reader]
    arguments = [argument.format(name) for argument in arguments]
    message = run_tool(checkpoints, tool, flat_config, *arguments).error()
    if (reader, name) == ('init_cfg', 'gone.pth'):
        assert message == (
            'pretrained weights gone.pth not found. Put the file there, set '
            'model.backbone.init_cfg.checkpoint, or train from scratch with '
            '--cfg-options model.backbone.init_cfg=None'
        )
    else:
        assert message.startswith(f'checkpoint {name} {reason}')
    assert not (checkpoints / 'malice').exists()
    assert not (checkpoints / 'work_dirs').exists()  # nothing had started


def test_weights_of_another_size(run_tool, flat_config, tmp_path):
    torch.save({'pos_embed': torch.zeros(1, 65, 48)}, tmp_path / 'weights.pth')
    message = run_tool(
        tmp_path,
        *('train.py', flat_config, '--cfg-options', 'model.backbone.init_cfg.type=Pretrained'),
        'model.backbone.init_cfg.checkpoint=weights.pth',
    ).error()
    assert 'is of another architecture: pos_embed: the checkpoint has (1, 65, 48), ' in message
    assert 'the model (1, 65, 32)' in message
    assert 'Set arch, patch' in message


def test_resume_needs_more_than_weights(run_tool, flat_config, checkpoints):
    message = run_tool(checkpoints, 'train.py', flat_config, '--resume', 'whole.pth').error()
    assert message == (
        'checkpoint whole.pth cannot be resumed: it has no message_hub, optimizer. To start from '
        'its weights: --cfg-options load_from=whole.pth'
    )


def test_detections_go_to_a_pickle(run_tool, flat_config, checkpoints):
    run = run_tool(checkpoints, 'test.py', flat_config, 'whole.pth', '--out', 'boxes.json')
    assert run.error() == '--out boxes.json: detections are saved to a file that ends in .pkl'


def test_pictures_need_a_hook(run_tool, flat_config, checkpoints):
    run = run_tool(
        checkpoints,
        *('test.py', flat_config, 'whole.pth', '--show-dir', 'pictures'),
        *('--cfg-options', 'default_hooks.visualization=None'),
    )
    assert run.error() == f'--show and --show-dir: {flat_config} has no visualization hook'


def test_augmentation_of_segmentation_is_up_to_the_config(run_tool, flat_config, checkpoints):
    run = run_tool(
        checkpoints,
        *('test.py', flat_config, 'whole.pth', '--tta', '--cfg-options'),
        *('default_scope=mmseg', 'tta_model=None'),
    )
    assert run.error() == '--tta: the config has no tta_model and tta_pipeline'


def test_other_errors_keep_their_traceback(run_tool, flat_config, tmp_path):
    option = 'env_cfg.mp_cfg.mp_start_method=teleport'
    run = run_tool(tmp_path, 'train.py', flat_config, '--cfg-options', option)
    assert run.status == 1
    assert 'Traceback' in run.stderr
    assert 'teleport' in run.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('foo', '--cfg-options foo: must be KEY=VALUE'),
        ('model.backbone.type=Unheard', 'there is no Unheard'),
        ('visualizer.vis_backends.0.type=AimVisBackend', 'needs the package aim, which is not'),
    ],
)
def test_settings_of_the_command_line(run_tool, flat_config, tmp_path, option, message):
    run = run_tool(tmp_path, 'train.py', flat_config, '--cfg-options', option)
    assert message in run.error()


def test_mistakes_of_a_config(run_tool, flat_config, tmp_path):
    (tmp_path / 'own.py').write_text(f"_base_ = '{flat_config}'\ntrain_cfg = dict(max_epoch=1)\n")
    message = run_tool(tmp_path, 'train.py', 'own.py').error()
    assert message == 'config: EpochBasedTrainLoop takes no max_epoch; did you mean max_epochs?'


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('from kat_mm.openmmlab import KATT\nmodel = dict(type=KATT)', 'Failed to import KATT'),
        ('import gone\nmodel = dict(type=gone.Model)', "No module named 'gone'"),
    ],
)
def test_imports_of_a_new_style_config(run_tool, tmp_path, line, message):
    (tmp_path / 'lazy.py').write_text(line)
    assert message in run_tool(tmp_path, 'train.py', 'lazy.py').error()


def test_launcher_without_processes(run_tool, flat_config, tmp_path):
    message = run_tool(tmp_path, 'train.py', flat_config, '--launcher', 'pytorch').error()
    assert message.startswith('--launcher pytorch: the program must be started by torchrun')


def test_label_maps_go_to_a_folder(run_tool, segmentation_config, checkpoints):
    run = run_tool(checkpoints, 'test.py', segmentation_config, 'whole.pth', '--out', 'whole.pth')
    assert run.error() == '--out whole.pth: is a file; label maps need a folder'


def test_curves_of_nothing(run_tool, tmp_path):
    message = run_tool(tmp_path, 'plot_training.py', 'gone').error()
    assert message == 'gone has no training log (*/vis_data/scalars.json)'


def test_data_that_cannot_be_made(run_tool, tmp_path):
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'mine.jpg').touch()
    message = run_tool(tmp_path, 'make_digit_scenes.py', 'photos').error()
    assert 'is not a digit-scenes data set' in message


def test_a_checkpoint_that_leaves_parts_random(run_tool, flat_config, tmp_path):
    from mmengine.config import Config
    from mmengine.registry import MODELS, DefaultScope

    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(Config.fromfile(flat_config).model)
    weights = model.state_dict()
    torch.save({k: v for k, v in weights.items() if 'mask_head' not in k}, tmp_path / 'part.pth')
    message = run_tool(tmp_path, 'test.py', flat_config, 'part.pth').error()
    assert message.startswith(
        'checkpoint part.pth has no weights that fit for roi_head.mask_head: scores would be'
    )


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('attention.rank=0', 'attention.rank=0 must be a whole number from 1 on'),
        ('attention.basis=sine', "unknown basis 'sine'; known: b_spline, chebyshev, fourier"),
        ('attention.basis.grid_size=0', 'basis.grid_size=0 must be a whole number from 1 on'),
        ('attention.G=3', "attention 'KArAt' takes no G; it takes basis, rank, form, base"),
        ('attention.form=phi', "attention.form='phi' has functions for all pairs of 257 tokens"),
        ('atention.rank=3', 'KAT takes no atention; did you mean attention?'),
    ],
)
def test_mistakes_in_learnable_attention(run_tool, flat_config, data, tmp_path, option, message):
    options = ('model.backbone.attention.type=KArAt', f'model.backbone.{option}')
    run = run_tool(tmp_path, 'train.py', flat_config, '--cfg-options', *options)
    assert message in run.error()
