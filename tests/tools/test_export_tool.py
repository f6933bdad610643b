import re
from pathlib import Path

import pytest

CONFIGS = Path(__file__).parents[2] / 'configs'
pytestmark = pytest.mark.slow


def export(run_tool, tmp_path, out, *options, config='kat_maskrcnn_digits.py'):
    small = ('--cfg-options', 'model.backbone.arch.num_layers=1')
    where = (CONFIGS / config, out, '--device', 'cpu', '--size', 64, 96)
    return run_tool(tmp_path, 'export.py', *where, *options, *small)


@pytest.mark.parametrize('config', ['kat_maskrcnn_digits.py', 'karat_maskrcnn_digits.py'])
@pytest.mark.parametrize('out', ['kat.pt2', 'kat.onnx'])
def test_what_is_exported_computes_the_same(run_tool, tmp_path, out, config):
    if out.endswith('onnx'):
        onnx = pytest.importorskip('onnx')
        pytest.importorskip('onnxscript')
        pytest.importorskip('onnxruntime')
    run = export(run_tool, tmp_path, out, '--dynamic', config=config).ended_well()
    assert float(re.search(r'largest difference: (\S+)', run.stdout)[1]) <= 1e-4
    if out.endswith('onnx'):
        graph = onnx.load(tmp_path / out).graph
        assert {node.domain for node in graph.node} == {''}  # standard operators
        sizes = graph.input[0].type.tensor_type.shape.dim
        assert [size.dim_param for size in sizes] == ['batch', '', 'height', 'width']


def test_errors(run_tool, tmp_path):
    message = 'kat.tflite: the name must end with one of .so.pt2, .pt2, .onnx'
    assert message in export(run_tool, tmp_path, 'kat.tflite').error()
