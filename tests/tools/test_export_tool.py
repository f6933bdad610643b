import re
from pathlib import Path

import numpy as np
import pytest

CONFIG = Path(__file__).parents[2] / 'configs' / 'kat_maskrcnn_digits.py'
pytestmark = pytest.mark.slow


def export(run_tool, tmp_path, out, *options):
    small = ('--cfg-options', 'model.backbone.arch.num_layers=1')
    where = (CONFIG, out, '--device', 'cpu', '--size', 64, 96)
    return run_tool(tmp_path, 'export.py', *where, *options, *small)


@pytest.mark.parametrize('out', ['kat.pt2', 'kat.onnx'])
def test_what_is_exported_computes_the_same(run_tool, tmp_path, out):
    if out.endswith('onnx'):
        pytest.importorskip('onnxscript')
        pytest.importorskip('onnxruntime')
    run = export(run_tool, tmp_path, out, '--dynamic').ended_well()
    assert float(re.search(r'largest difference: (\S+)', run.stdout)[1]) <= 1e-4


def test_onnx_has_standard_operators_and_any_batch(run_tool, tmp_path):
    onnx = pytest.importorskip('onnx')
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    export(run_tool, tmp_path, 'kat.onnx', '--dynamic').ended_well()
    graph = onnx.load(tmp_path / 'kat.onnx').graph
    assert {node.domain for node in graph.node} == {''}
    session = onnxruntime.InferenceSession(tmp_path / 'kat.onnx')
    maps = session.run(None, {session.get_inputs()[0].name: np.zeros((3, 3, 64, 96), np.float32)})
    assert maps[0].shape[0] == 3
    assert maps[0].shape[2:] == (16, 24)


def test_errors(run_tool, tmp_path):
    message = 'kat.tflite: the name must end with one of .so.pt2, .pt2, .onnx'
    assert message in export(run_tool, tmp_path, 'kat.tflite').error()
