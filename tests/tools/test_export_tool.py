import re
from pathlib import Path

import pytest

CONFIG = Path(__file__).parents[2] / 'configs' / 'kat_maskrcnn_digits.py'
pytestmark = pytest.mark.slow


def export(run_tool, tmp_path, out, *options, device='cpu'):
    small = ('--cfg-options', 'model.backbone.arch.num_layers=1')
    where = (CONFIG, out, '--device', device, '--size', 64, 96)
    return run_tool(tmp_path, 'export.py', *where, *options, *small)


def difference(run):
    return float(re.search(r'largest difference: (\S+)', run.stdout)[1])


@pytest.mark.parametrize('out', ['kat.pt2', 'kat.onnx'])
def test_what_is_exported_computes_the_same(run_tool, tmp_path, out):
    if out.endswith('onnx'):
        onnx = pytest.importorskip('onnx')
        pytest.importorskip('onnxscript')
        pytest.importorskip('onnxruntime')
    run = export(run_tool, tmp_path, out, '--dynamic').ended_well()
    assert difference(run) <= 1e-4
    if out.endswith('onnx'):
        graph = onnx.load(tmp_path / out).graph
        assert {node.domain for node in graph.node} == {''}  # standard operators
        sizes = graph.input[0].type.tensor_type.shape.dim
        assert [size.dim_param for size in sizes] == ['batch', '', 'height', 'width']


def test_package_of_aot_inductor_computes_the_same(run_tool, tmp_path, device):
    run = export(run_tool, tmp_path, 'kat.so.pt2', device=device).ended_well()
    assert difference(run) <= 1e-4


def test_errors(run_tool, tmp_path):
    message = 'kat.tflite: the name must end with one of .so.pt2, .pt2, .onnx'
    assert message in export(run_tool, tmp_path, 'kat.tflite').error()
