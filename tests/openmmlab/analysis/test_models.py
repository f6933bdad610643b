"""Which checkpoints belong to a run, and models that are built from them."""

import random

import numpy as np
import pytest
import torch
from kats import ARCH, Detector
from mmengine.config import Config
from mmengine.registry import MODELS

from kat_mm.errors import ConfigError, DataError
from kat_mm.openmmlab.analysis.models import (
    build_trained,
    check_spans_plane,
    find_checkpoint,
    load_states,
    path_of_training,
    redraw,
)


@pytest.fixture(autouse=True, scope='module')
def registered():
    MODELS.register_module(module=Detector, name='AnalysedDetector', force=True)
    yield
    MODELS.module_dict.pop('AnalysedDetector')


def config(**options):
    return Config(dict(model=dict(type='AnalysedDetector', arch=ARCH, **options)))


def save(folder, name, model=None, **meta):
    model = model or Detector()
    content = {'state_dict': model.state_dict(), 'meta': meta}
    torch.save(content, folder / name)
    return folder / name


def test_a_folder_means_its_last_checkpoint(tmp_path):
    for epoch in (1, 2, 10):
        save(tmp_path, f'epoch_{epoch}.pth')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_10.pth'))
    assert find_checkpoint(str(tmp_path)) == tmp_path / 'epoch_10.pth'
    assert find_checkpoint(str(tmp_path / 'epoch_2.pth')) == tmp_path / 'epoch_2.pth'
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match=r'empty has no checkpoint .*: name the work dir of'):
        find_checkpoint(str(tmp_path / 'empty'))
    with pytest.raises(DataError, match='must be a file here; download it first'):
        find_checkpoint('https://example.org/a.pth')


def test_the_path_is_sorted_and_ends_at_the_checkpoint(tmp_path):
    for epoch in (1, 2, 10, 11):
        save(tmp_path, f'epoch_{epoch}.pth', iter=5 * epoch)
    save(tmp_path, 'best_coco_epoch_2.pth', iter=10)
    save(tmp_path, 'iter_7.pth')
    path = path_of_training(tmp_path / 'epoch_10.pth')
    assert [(step, file.name) for step, file in path] == [
        *((5, 'epoch_1.pth'), (7, 'iter_7.pth'), (10, 'epoch_2.pth')),
        (50, 'epoch_10.pth'),
    ]
    check_spans_plane(path)
    with pytest.raises(DataError, match=r'has 1 checkpoints .*max_keep_ckpts=-1'):
        check_spans_plane(path[:1])


def test_states_of_another_model_are_refused(tmp_path):
    model = Detector()
    save(tmp_path, 'epoch_1.pth', model)
    other = save(tmp_path, 'epoch_2.pth', Detector({**ARCH, 'embed_dims': 64}))
    files = path_of_training(other)
    with pytest.raises(DataError, match=r'epoch_2.pth has another shape of backbone.* another mod'):
        load_states(model, files)
    states = load_states(model, files[:1])
    assert all(torch.equal(v, states[0][k]) for k, v in model.state_dict().items())


def test_a_model_is_built_with_all_its_weights(tmp_path):
    model = Detector(attention='KArAt')
    path = save(tmp_path, 'epoch_1.pth', model)
    built = build_trained(config(attention='KArAt'), path, torch.device('cpu'))
    assert all(torch.equal(v, built.state_dict()[k]) for k, v in model.state_dict().items())
    assert not any(module.training for module in built.modules())
    with pytest.raises(DataError, match=r'of another architecture: .*coefficients'):
        build_trained(
            config(attention=dict(type='KArAt', basis='rational')), path, torch.device('cpu')
        )
    with pytest.raises(ConfigError, match='has no model'):
        build_trained(Config({}), path, torch.device('cpu'))


def test_drawing_again_leaves_the_generators_alone(tmp_path):
    path = save(tmp_path, 'epoch_1.pth', seed=3)
    state, others = torch.get_rng_state(), (random.getstate(), np.random.get_state()[1].copy())  # noqa: NPY002
    first = redraw(config(), path, torch.device('cpu'))
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == others[0]
    assert (np.random.get_state()[1] == others[1]).all()  # noqa: NPY002
    torch.manual_seed(8)
    second = redraw(config(), path, torch.device('cpu'))
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    assert redraw(config(), save(tmp_path, 'epoch_2.pth'), torch.device('cpu')) is None
