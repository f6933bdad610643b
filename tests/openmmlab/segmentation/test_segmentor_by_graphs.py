"""UPerNet by CUDA graphs, and with deterministic algorithms, on a GPU."""

import mmseg.models  # noqa: F401, which the fused heads follow
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

from kat_mm.graphs import graph_parts
from kat_mm.openmmlab.batches.random_batches import random_batches
from kat_mm.openmmlab.hooks.cuda_graph import default_parts
from kat_mm.rational.op import compiled_devices

pytestmark = pytest.mark.gpu
HEAD = dict(channels=16, num_classes=7, norm_cfg=dict(type='BN'))
LOADER = Config(dict(train_dataloader=dict(batch_size=2, dataset=dict(pipeline=[]))))


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')
    assert 'cuda' in compiled_devices(), 'the compiled CUDA kernel is missing: build it first'
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


def build(kind='FusedEncoderDecoder', fused='Fused'):
    config = dict(
        type=kind,
        data_preprocessor=dict(type='SegDataPreProcessor', size=(128, 128)),
        backbone=dict(
            type='KAT',
            arch=dict(embed_dims=64, num_layers=4, num_heads=2),
            img_size=64,
            out_indices=(0, 1, 2, 3),
            drop_path_rate=0.3,
        ),
        neck=dict(type='FusedMultiLevelNeck', in_channels=[64] * 4, out_channels=64),
        decode_head=dict(
            type=f'{fused}UPerHead',
            in_channels=[64] * 4,
            in_index=[0, 1, 2, 3],
            pool_scales=(1, 2, 3, 6),
            loss_decode=dict(type='CrossEntropyLoss', class_weight=[1.0, *[2.0] * 6]),
            **HEAD,
        ),
        auxiliary_head=dict(type=f'{fused}FCNHead', in_channels=64, in_index=2, **HEAD),
        test_cfg=dict(mode='whole'),
    )
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(Config(config)._cfg_dict).cuda()


def train(model, steps=8, **wrapper):
    batches = random_batches(LOADER, model, 3)
    optimizer = dict(type='AdamW', lr=1e-3, fused=True)
    config = dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=dict(enabled=False))
    with DefaultScope.overwrite_default_scope('mmengine'):
        wrapper = build_optim_wrapper(model, dict(**config, optimizer=optimizer, **wrapper))
    model.train()
    for step in range(steps):
        torch.manual_seed(step)
        batch = {key: list(value) for key, value in batches[step % 3].items()}
        batch['data_samples'] = [sample.clone() for sample in batch['data_samples']]
        model.train_step(batch, wrapper)
    return model.state_dict()


@pytest.mark.parametrize(
    'wrapper', [{}, {'accumulative_counts': 2}, {'clip_grad': dict(max_norm=0.1)}]
)
def test_weights_are_those_of_a_run_without_graphs(wrapper):
    expected = train(build(), **wrapper)
    model = build()
    parts = graph_parts(model, default_parts(model))
    found = train(model, **wrapper)
    assert [len(part.captures) for part in parts.parts] == [1, 0]
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def test_a_stock_segmentor_runs_by_graphs_up_to_logits():
    expected = train(build('EncoderDecoder'))
    model = build('EncoderDecoder')
    parts = graph_parts(model, default_parts(model))
    found = train(model)
    assert [len(part.captures) for part in parts.parts] == [1, 1, 1]
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def test_fifty_steps_end_with_the_same_bits():
    first, second = (train(build(), steps=50) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_labels_by_graphs():
    model = build().eval()
    batch = random_batches(LOADER, model, 1)[0]
    expected = [s.pred_sem_seg.data for s in model.test_step(dict(batch))]
    parts = graph_parts(model, default_parts(model), warmup=1)
    with torch.no_grad():
        for _ in range(3):
            found = [s.pred_sem_seg.data for s in model.test_step(dict(batch))]
            assert all(map(torch.equal, found, expected))
    assert [len(part.captures) for part in parts.parts] == [0, 1]
