"""Exported programs, at other sizes than those that they were traced at."""

import pytest
import torch

from kat_mm.models import KAT
from kat_mm.models.export import export_backbone, run, save

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def model():
    """A backbone of parts that depend on the size: windows, relative positions, a crop."""
    torch.manual_seed(0)
    model = KAT(
        dict(embed_dims=16, num_layers=2, num_heads=2),
        img_size=32,
        patch=8,
        pyramid=dict(channels=(4,), strides=(4,)),
        ffn='mlp',
        attention=dict(window_size=3, global_blocks=(1,), rel_pos=True),
    )
    with torch.no_grad():
        for parameter in model.parameters():  # relative positions start at zero
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


@pytest.fixture(scope='module')
def program(model):
    one_window = torch.zeros(1, 3, 24, 24)
    return export_backbone(model, one_window, any_batch=True, any_size=True)


@pytest.mark.parametrize('kind', ['pt2', 'onnx'])
def test_any_batch_and_any_size(model, program, tmp_path, kind):
    if kind == 'onnx':
        pytest.importorskip('onnxscript')
        pytest.importorskip('onnxruntime')
    path = tmp_path / f'kat.{kind}'
    save(program, path, kind)
    for size in [(1, 3, 32, 32), (5, 3, 43, 61)]:
        images = torch.randn(size)
        with torch.no_grad():
            results, expected = run(path, kind, images), model(images)
        torch.testing.assert_close(results, list(expected), rtol=1e-4, atol=1e-4)


def test_what_the_guards_of_a_program_leave(model, program):
    """Those left out refused sizes that are right; those left refuse what it was not traced for."""
    module = program.module()
    with torch.no_grad():
        for height in (17, 24, 31, 48, 64):  # that fill windows of 3 x 3 patches, or do not
            for width in (17, 24, 30, 49, 72):
                images = torch.randn(2, 3, height, width)
                torch.testing.assert_close(
                    list(module(images)), list(model(images)), rtol=1e-4, atol=1e-4
                )
        for size in [(2, 3, 8, 32), (2, 4, 32, 32), (1025, 3, 17, 17)]:
            with pytest.raises(AssertionError, match=r'Guard failed: images.size\(\)'):
                module(torch.randn(size))


def test_package_of_aot_inductor(tmp_path, device):
    arch = dict(embed_dims=16, num_layers=1, num_heads=2)
    model = KAT(arch, img_size=32, patch=8).to(device).eval()
    images = torch.randn(2, 3, 40, 24, device=device)
    path = tmp_path / 'kat.so.pt2'
    save(export_backbone(model, images), path, 'aoti')
    with torch.no_grad():
        results, expected = run(path, 'aoti', images), model(images)
    torch.testing.assert_close(results, list(expected), rtol=1e-4, atol=1e-4)
