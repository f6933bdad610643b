"""Checkpoints through mmengine's load_from, for models that have a backbone of ours and others."""

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.model import BaseTTAModel
from mmengine.runner import Runner, checkpoint
from mmengine.runner.checkpoint import load_checkpoint
from torch import nn

from kat_mm.errors import DataError
from kat_mm.weights.layout import weights_of

pytest.importorskip('timm')
import kats
import vits


@pytest.fixture
def messages(monkeypatch):
    texts = []

    def note(text, *args, **kwargs):
        texts.append(str(text))

    # What the core logs goes to mmengine's logger.
    monkeypatch.setattr('kat_mm.openmmlab.core_log.print_log', note)
    monkeypatch.setattr('mmengine.runner.checkpoint.print_log', note)
    return texts


def test_every_key_is_used_or_listed(tmp_path, messages):
    state = kats.published().state_dict()
    path = kats.save({'state_dict': state, 'state_dict_ema': state}, tmp_path / 'a.pth')
    load_checkpoint(kats.Detector(), path)
    text = '\n'.join(messages)
    assert 'loaded 38 tensors of the checkpoint' in text
    assert 'so not used: state_dict, head.weight, head.bias' in text
    assert 'missing keys in source state_dict: neck.weight, neck.bias' in text
    with pytest.raises(RuntimeError, match=r'missing keys in source state_dict: neck\.weight'):
        load_checkpoint(kats.Detector(), path, strict=True)


def test_a_vit_becomes_a_kat(tmp_path):
    vit = vits.vit()
    path = kats.save(vit.state_dict(), tmp_path / 'vit.pth')
    arch = {'embed_dims': 64, 'num_layers': 2, 'num_heads': 1}
    model = kats.Detector(arch, img_size=32, patch=8).eval()
    load_checkpoint(model, path)
    x = torch.randn(2, 3, 32, 32)
    expected = vit.forward_features(x)[:, 1:].mT.unflatten(2, (4, 4))
    assert (model(x)[0] - expected).abs().max() < 0.05


@pytest.mark.parametrize(
    'wrap', [lambda state: state, lambda state: {'state_dict': state}, lambda s: {'model': s}]
)
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_a_detector_is_taken_whole(wrap, prefix, tmp_path):
    source, model = kats.Detector(), kats.Detector()
    nn.init.normal_(source.neck.weight)
    state = source.state_dict()
    content = wrap({prefix + key: value for key, value in state.items()})
    load_checkpoint(model, kats.save(content, tmp_path / 'a.pth'), strict=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_a_wrapped_model_is_told_from_its_wrapper(tmp_path):
    source, model = kats.Detector(), kats.Detector()
    wrapped = nn.parallel.DataParallel(model)
    load_checkpoint(wrapped, kats.save(source.state_dict(), tmp_path / 'a.pth'), strict=True)
    assert torch.equal(model.backbone.pos_embed, source.backbone.pos_embed)


def test_other_models_load_as_before(tmp_path):
    source, model = nn.Linear(2, 2), nn.Linear(2, 2)
    content = {'state_dict': {**source.state_dict(), 'other': torch.zeros(1)}}
    load_checkpoint(model, kats.save(content, tmp_path / 'a.pth'))
    assert torch.equal(model.weight, source.weight)


def test_hub_ids(monkeypatch, tmp_path):
    hub = pytest.importorskip('huggingface_hub')
    source, model = kats.published(), kats.Detector()
    kats.save(source.state_dict(), tmp_path / 'model.safetensors')
    monkeypatch.setattr(hub, 'hf_hub_download', lambda name, file, revision: str(tmp_path / file))
    load_checkpoint(model, 'hf-hub:adamdad/kat_tiny_patch16_224', 'cpu')
    assert torch.equal(model.backbone.norm.bias, source.norm.bias)
    assert checkpoint.CheckpointLoader.load_checkpoint('hf-hub:me/kat', 'meta')['norm.bias'].is_meta


def test_averaged_weights_start_from_a_plain_file(tmp_path):
    source = kats.published()
    path = kats.save(source.state_dict(), tmp_path / 'a.pth')
    runner = Runner(
        kats.Detector(),
        work_dir=str(tmp_path),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            dataset=[{'inputs': torch.zeros(3, 64, 64)}] * 2,
            sampler=dict(type='DefaultSampler', shuffle=False),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        custom_hooks=[dict(type='EMAHook')],
        load_from=path,
        log_level='ERROR',
    )
    runner.train()
    [hook] = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    assert torch.equal(hook.ema_model.module.backbone.norm.bias, source.norm.bias)


class Tower(nn.Module):
    """The least that is a backbone: `Backbone` tells it by its members alone."""

    out_channels, out_strides = (3,), (16,)

    def __init__(self):
        super().__init__()
        self.fc, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)

    def get_layer_depth(self, param_name, prefix=''):
        return 0, 1

    def check_image_size(self, height, width):
        pass

    def adapt_checkpoint(self, content, source):
        weights = {k.replace('dense.', 'fc.'): v for k, v in weights_of(content, source).items()}
        if weights['fc.weight'].shape != self.fc.weight.shape:
            raise DataError(f'{source} is of another architecture')
        return {key: value for key, value in weights.items() if key in self.state_dict()}


class Model(nn.Module):
    def __init__(self, count=1):
        super().__init__()
        self.backbone = Tower() if count else nn.Linear(3, 3)
        if count > 1:
            self.teacher = Tower()
        self.head = nn.Linear(2, 2)
        self.notes = {}

    def test_step(self, data):
        """Test-time augmentation asks for it."""

    def get_extra_state(self):
        return {'notes': 1}

    def set_extra_state(self, state):
        self.notes = state


def load(model, content, **options):
    return checkpoint._load_checkpoint_to_model(model, content, **options)


def equal(model, state):
    own = {key.replace('_orig_mod.', ''): value for key, value in model.state_dict().items()}
    return all(torch.equal(own[k], v) for k, v in state.items() if torch.is_tensor(v))


def same(state):
    return state


def with_compiled_backbone(state):
    return {key.replace('backbone.', 'backbone._orig_mod.'): v for key, v in state.items()}


def whole_compiled(state):
    return {f'_orig_mod.{key}': value for key, value in state.items()}


def compiled_and_distributed(state):
    return {f'module._orig_mod.{key}': value for key, value in state.items()}


def compiled_backbone(model):
    model.backbone = torch.compile(model.backbone)
    return model


NAMES = [same, with_compiled_backbone, whole_compiled, compiled_and_distributed]
WRAPPINGS = [same, compiled_backbone, torch.compile, nn.DataParallel]


@pytest.mark.parametrize('names', NAMES)
@pytest.mark.parametrize('wrap', WRAPPINGS)
def test_a_whole_model_loads_whole(wrap, names):
    source, model = Model(), Model()
    load(wrap(model), {'state_dict': names(source.state_dict())}, strict=True)
    assert equal(model, source.state_dict())
    assert model.notes == {'notes': 1}


@pytest.mark.parametrize('names', [NAMES[0], *NAMES[2:]])
@pytest.mark.parametrize('wrap', WRAPPINGS)
def test_a_bare_backbone_finds_its_place(wrap, names):
    source, model = Tower(), Model()
    head = copy.deepcopy(model.head.state_dict())
    load(wrap(model), names(source.state_dict()))
    assert equal(model.backbone, source.state_dict())
    assert equal(model.head, head)


def test_the_backbone_itself_is_the_model():
    source, model = Tower(), Tower()
    load(model, {'state_dict': source.state_dict()}, strict=True)
    assert equal(model, source.state_dict())


def test_other_keys_of_a_backbone_are_adapted():
    """Bare or in a whole model, whose other keys all stay."""
    for prefix, source in (('', Tower()), ('backbone.', Model())):
        state = source.state_dict()
        renamed = {k.replace(f'{prefix}fc.', f'{prefix}dense.'): v for k, v in state.items()}
        model = Model()
        load(model, {'model_ema': renamed} if not prefix else {'state_dict': renamed})
        assert equal(model if prefix else model.backbone, state)


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.backbone.'])
def test_another_architecture_is_refused(prefix):
    model = Model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DataError, match='the checkpoint is of another architecture'):
        load(model, {f'{prefix}fc.weight': torch.zeros(4, 4)})
    assert equal(model, before)


def test_revise_keys_come_first():
    source = Model()
    state = {f'student/{key}': value for key, value in source.state_dict().items()}
    for keys in ([(r'^student/', '')], [(r'^student/', 'module.'), (r'^module\.', '')]):
        model = Model()
        load(model, {'state_dict': state}, strict=True, revise_keys=keys)
        assert equal(model, source.state_dict())
    with pytest.raises(DataError, match='another architecture'):
        load(Model(), {'x.weight': torch.zeros(4, 4)}, revise_keys=[(r'^x', 'backbone.fc')])


def test_a_module_of_the_name_module_stays():
    source, model = nn.Module(), nn.Module()
    source.module, model.module = Model(), Model()
    load(model, {'state_dict': source.state_dict()}, strict=True, revise_keys=[])
    assert equal(model, source.state_dict())


def test_test_time_augmentation_wraps_the_model():
    source, model = Model(), Model()
    load(Averaging(model), source.state_dict(), strict=True)
    assert equal(model, source.state_dict())


class Averaging(BaseTTAModel):
    def merge_preds(self, data_samples_list):
        return data_samples_list


@pytest.mark.parametrize('count', [0, 2])
@pytest.mark.parametrize('strict', [False, True])
def test_without_one_backbone_all_is_as_ever(count, strict, monkeypatch):
    """mmengine's function has what it would have had."""
    calls = []
    monkeypatch.setattr(
        checkpoint, 'load_state_dict', lambda model, state, *rest: calls.append((state, *rest))
    )
    state = {'_orig_mod.backbone.weight': torch.zeros(9), 'module.other': torch.zeros(1)}
    content = {'model': {}, 'state_dict': state}
    assert load(Model(count), content, strict=strict) is content
    [(given, *rest)] = calls
    assert list(given) == ['_orig_mod.backbone.weight', 'other']
    assert rest == [strict, None]


def test_what_was_in_the_file_is_returned(tmp_path):
    content = {'state_dict': Model().state_dict(), 'meta': {'classes': ('a', 'b')}}
    assert load(Model(), content) is content


def test_versions_of_modules_reach_them():
    model = Model()
    seen = []
    model.backbone.norm._load_from_state_dict = lambda state, prefix, meta, *_: seen.append(meta)
    load(model, {'state_dict': Model().state_dict()})
    assert seen == [{'version': 2}]


@pytest.mark.parametrize('name', ['mmengine.runner.runner', 'mmengine.infer.infer'])
def test_all_that_load_by_mmengines_function(name):
    pytest.importorskip(name)
    function = sys.modules[name]._load_checkpoint_to_model
    assert function is checkpoint._load_checkpoint_to_model


def test_averaged_weights_take_plain_files_of_any_model(tmp_path):
    model = nn.Linear(2, 2)
    hook = EMAHook()
    runner = SimpleNamespace(model=model, _resume=False)
    hook.before_run(runner)
    state = nn.Linear(2, 2).state_dict()
    for content in (state, {'state_dict': state}):
        nn.init.zeros_(hook.ema_model.module.weight)
        hook.after_load_checkpoint(runner, content)
        assert equal(hook.ema_model.module, state)
