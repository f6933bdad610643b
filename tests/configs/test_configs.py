"""Every config parses, builds its model and holds the recipe that it promises."""

from pathlib import Path

import pytest
import torch
from mmengine.registry import DATASETS, MODELS, DefaultScope

import kat_mm.openmmlab  # noqa: F401
from kat_mm.attention.karat import KArAt
from kat_mm.attention.softmax import SoftmaxAttention
from kat_mm.models import ARCHS
from kat_mm.openmmlab.configs import nested

CONFIGS = Path(__file__).parents[2] / 'configs'
NO_CONFIGS = {'_base_', 'studies'}  # parts of configs, and comparisons of several
NAMES = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob('*.py')
    if not NO_CONFIGS & {*path.parts}
)
KARAT = {  # with Kolmogorov-Arnold attention, and the configs that they change
    name: name.replace('karat_', 'kat_') for name in NAMES if Path(name).stem.startswith('karat_')
}
PLAIN = [name for name in NAMES if name not in KARAT]
COCO = [name for name in PLAIN if name.endswith('_maskrcnn_coco.py')]
ADE20K = [name for name in PLAIN if name.endswith('_upernet_ade20k.py')]

# Each KAT config and its twin with plain MLPs.
COCO_TWINS = {
    'coco/kat_tiny_maskrcnn_coco.py': 'coco/vit_tiny_maskrcnn_coco.py',
    'kat_maskrcnn_coco.py': 'coco/vit_small_maskrcnn_coco.py',
    'coco/kat_base_maskrcnn_coco.py': 'coco/vit_base_maskrcnn_coco.py',
}
ADE20K_TWINS = {
    'ade20k/kat_tiny_upernet_ade20k.py': 'ade20k/vit_tiny_upernet_ade20k.py',
    'kat_upernet_ade20k.py': 'ade20k/vit_small_upernet_ade20k.py',
    'ade20k/kat_base_upernet_ade20k.py': 'ade20k/vit_base_upernet_ade20k.py',
}
TWINS = {
    **COCO_TWINS,
    **ADE20K_TWINS,
    'digits/kat_maskrcnn_800x1333.py': 'digits/vit_maskrcnn_800x1333.py',
}
# Configs for one GPU and those for eight.
ONE_GPU = {
    'coco/kat_small_maskrcnn_coco_1gpu.py': 'kat_maskrcnn_coco.py',
    'ade20k/kat_small_upernet_ade20k_1gpu.py': 'kat_upernet_ade20k.py',
}
# Of whole models, as the KAT paper (arXiv 2409.10594) gives them.
PUBLISHED_PARAMETERS = {
    'kat_maskrcnn_coco.py': 44.5e6,
    'coco/kat_base_maskrcnn_coco.py': 113.7e6,
    'kat_upernet_ade20k.py': 57e6,
    'ade20k/kat_base_upernet_ade20k.py': 142e6,
}


def build(config):
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return MODELS.build(config.model)


def differences(first, second, path=''):
    """Yields the dotted names of the settings in which two configs differ."""
    for key in sorted({*first, *second}):
        a, b = first.get(key), second.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f'{path}{key}.')
        elif a != b:
            yield f'{path}{key}'


@pytest.mark.parametrize('name', NAMES)
def test_config_builds_its_model(load, name):
    config = load(name)
    model = build(config)
    assert type(model).__name__ == config.model.type
    assert type(model.backbone).__name__ == 'KAT'
    if name in PUBLISHED_PARAMETERS:
        count = sum(parameter.numel() for parameter in model.parameters())
        assert count == pytest.approx(PUBLISHED_PARAMETERS[name], rel=0.015)


@pytest.mark.parametrize('name', NAMES)
def test_heads_know_the_classes_of_the_data(load, name):
    config = load(name)
    dataset = config.val_dataloader.dataset
    stock = DATASETS.get(f'{config.default_scope}.{dataset.type}').METAINFO
    classes = dataset.get('metainfo', stock)['classes']
    heads = [config.model.get('decode_head', {}), *config.model.get('roi_head', {}).values()]
    known = {head['num_classes'] for head in heads if 'num_classes' in head}
    assert known == {len(classes)}


@pytest.mark.parametrize('name', NAMES)
def test_training_is_safe_and_repeatable(load, name):
    config = load(name)
    hooks = {hook.type for hook in config.custom_hooks}
    assert {'EpochSeedHook', 'FiniteLossHook'} <= hooks
    assert config.default_hooks.checkpoint.type == 'SafeCheckpointHook'
    assert config.log_processor.type == 'MemoryLogProcessor'
    assert config.optim_wrapper.constructor == 'KATOptimWrapperConstructor'
    assert isinstance(config.randomness.seed, int)
    assert 'kat_mm.openmmlab' in config.custom_imports.imports


@pytest.mark.parametrize(('names', 'twins'), [(COCO, COCO_TWINS), (ADE20K, ADE20K_TWINS)])
def test_the_configs_are_pairs(names, twins):
    assert names == sorted([*twins, *twins.values()])
    assert len(twins) == len(ARCHS)


@pytest.mark.parametrize(('kat', 'vit'), TWINS.items())
def test_twins_differ_in_ffn_and_weights_only(load, kat, vit):
    different = set(differences(load(kat), load(vit)))
    weights = (
        {'model.backbone.init_cfg.checkpoint', 'pretrained'} if kat in COCO + ADE20K else set()
    )
    assert different == {'model.backbone.ffn', *weights}
    assert load(kat).model.backbone.get('ffn', 'gr_kan') == 'gr_kan'
    assert load(vit).model.backbone.ffn == 'mlp'


@pytest.mark.parametrize(('karat', 'kat'), KARAT.items())
def test_learnable_attention_is_all_that_differs(load, karat, kat):
    config = load(karat)
    plain = load(kat)
    assert [*config.custom_hooks] == [*plain.custom_hooks, dict(type='ScoreRangeHook')]
    assert {*differences(config, plain)} <= {
        'custom_hooks',
        'model.backbone.attention',
        *(f'model.backbone.attention.{key}' for key in config.model.backbone.attention),
    }
    backbone = build(config).backbone
    attentions = [block.attn for block in backbone.blocks]
    learnable = [attention for attention in attentions if isinstance(attention, KArAt)]
    assert {type(attention) for attention in attentions} <= {KArAt, SoftmaxAttention}
    if backbone.window_size:  # maps of any size: functions are of windows, which are of one
        assert {attention.window_size for attention in learnable} == {backbone.window_size}
        assert len(learnable) >= len(attentions) / 2
    else:
        assert len(learnable) == len(attentions)
    # Weights that were trained with softmax keep what they compute.
    gated = {attention.gate is not None for attention in learnable}
    starts_from_softmax = 'coco' in karat or 'ade20k' in karat or '800x1333' in karat
    assert gated == {starts_from_softmax}
    for attention in learnable:
        assert attention.operator.units.basis.grid_size == 3
        assert attention.operator.units.coefficients.shape[1] == 12


def check_optimizer(config):
    assert config.auto_scale_lr.base_batch_size == 16 == 8 * config.train_dataloader.batch_size
    optimizer = config.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr) == ('AdamW', 1e-4)
    assert config.optim_wrapper.type == 'AmpOptimWrapper'
    assert config.optim_wrapper.dtype == 'bfloat16'


@pytest.mark.parametrize('name', COCO)
def test_coco_recipe(load, name):
    config = load(name)
    assert config.train_cfg.max_epochs == 36
    check_optimizer(config)
    assert all(s.end == config.train_cfg.max_epochs for s in config.param_scheduler if s.by_epoch)

    for split, folder in (('train', 'train2017'), ('val', 'val2017'), ('test', 'val2017')):
        dataset = config[f'{split}_dataloader'].dataset
        assert dataset.type == 'CocoDataset'
        assert dataset.data_root == 'data/coco/'
        assert dataset.ann_file == f'annotations/instances_{folder}.json'
        assert dataset.data_prefix.img == f'{folder}/'
        resize = [step for step in dataset.pipeline if step.type == 'Resize']
        assert [tuple(step.scale) for step in resize] == [(1333, 800)]
        assert resize[0].keep_ratio
    train_pipeline = config.train_dataloader.dataset.pipeline
    assert train_pipeline[0].type == 'LoadCheckedImage'
    assert config.val_evaluator.metric == ['bbox', 'segm']


@pytest.mark.parametrize(('one', 'eight'), ONE_GPU.items())
def test_one_gpu_takes_the_whole_batch_of_the_recipe(load, one, eight):
    loader = 'train_dataloader.'
    assert {*differences(load(one), load(eight))} == {f'{loader}batch_size', f'{loader}num_workers'}
    assert load(one).train_dataloader.batch_size == load(one).auto_scale_lr.base_batch_size


@pytest.mark.parametrize('name', [*COCO, *ADE20K])
def test_loaders_keep_up_with_a_gpu(load, name):
    config = load(name)
    assert config.train_dataloader.persistent_workers
    assert config.train_dataloader.pin_memory
    assert config.train_dataloader.collate_fn.type == 'compact_collate'
    assert config.model.data_preprocessor.type.startswith('Batched')
    steps = [step.type for step in config.train_dataloader.dataset.pipeline]
    assert ('PackMasks' if name in COCO else 'PackByteSegInputs') in steps


@pytest.mark.parametrize('name', COCO)
def test_coco_sizes_fit_together(load, name):
    config = load(name)
    channels = check_size(name, config.model.backbone)
    assert config.model.neck.in_channels == channels
    assert config.model.backbone.attention.window_size == 14


def check_size(name, backbone):
    """Checks arch and weights against the name of the config; returns the arch's channels."""
    kind, size = Path(name).stem.split('_')[:2]
    size = size if size in ARCHS else 'small'
    assert backbone.arch == size
    assert backbone.init_cfg.checkpoint == f'checkpoints/{kind}_{size}_patch16_224.pth'
    return ARCHS[size]['embed_dims']


@pytest.mark.parametrize('name', ADE20K)
def test_ade20k_recipe(load, name):
    config = load(name)
    assert config.train_cfg.max_iters == 160000 == config.param_scheduler[-1].end
    check_optimizer(config)
    check_size(name, config.model.backbone)
    for split, folder in (('train', 'training'), ('val', 'validation'), ('test', 'validation')):
        dataset = config[f'{split}_dataloader'].dataset
        assert dataset.type == 'ADE20KDataset'
        assert dataset.data_root == 'data/ade/ADEChallengeData2016'
        assert dataset.data_prefix == dict(
            img_path=f'images/{folder}', seg_map_path=f'annotations/{folder}'
        )
        assert 'LoadCheckedLabelMap' in [step.type for step in dataset.pipeline]
    (crop,) = (s for s in config.train_dataloader.dataset.pipeline if s.type == 'RandomCrop')
    assert tuple(crop.crop_size) == tuple(config.model.data_preprocessor.size) == (512, 512)
    assert config.val_evaluator.type == 'IoUMetric'
    assert config.val_evaluator.iou_metrics == ['mIoU']


@pytest.mark.parametrize('name', [name for name in NAMES if 'upernet' in name])
@pytest.mark.parametrize('ignored', ['some', 'all'])
def test_losses_of_ignored_pixels_are_finite(load, name, ignored):
    model = load(name).model
    for head in (model.decode_head, model.auxiliary_head):
        with DefaultScope.overwrite_default_scope('mmseg'):
            loss = MODELS.build(head.loss_decode)
        scores = torch.randn(1, head.num_classes, 4, 4, requires_grad=True)
        labels = torch.full((1, 4, 4), 255)
        if ignored == 'some':
            labels[0, 0] = head.num_classes - 1
        value = loss(scores, labels, ignore_index=255)
        value.backward()
        assert value.isfinite()
        assert scores.grad.isfinite().all()
        assert bool(scores.grad.any()) == (ignored == 'some')


@pytest.mark.parametrize('name', NAMES)
def test_no_weights_but_the_backbones_are_loaded(load, name):
    """The base config of mmdet names ResNet weights on the internet."""
    config = load(name)
    named = [init['checkpoint'] for init in nested(config.model, 'checkpoint')]
    plain = KARAT.get(name, name)
    assert named == ([config.pretrained] if plain in [*COCO, *ADE20K, *ONE_GPU] else [])


@pytest.mark.parametrize('name', [n for n in (*COCO, *ADE20K) if 'tiny' in n or 'base' in n])
def test_a_size_is_a_few_lines(name):
    lines = [line.strip() for line in (CONFIGS / name).read_text().splitlines()]
    brackets = ('#', '_base_', 'model = dict(', ')')
    assert len([line for line in lines if line and not line.startswith(brackets)]) <= 6
