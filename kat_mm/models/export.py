"""Exports a backbone: to torch's own format, to ONNX, or compiled by AOTInductor."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..errors import UserError
from ..rational.reference import rational_formula

LARGEST_BATCH = 1024
AXES = ({0: 'batch', 2: 'height', 3: 'width'},)  # names in ONNX of those that vary


def export_backbone(
    model: nn.Module, images: Tensor, any_batch: bool = False, any_size: bool = False
) -> ExportedProgram:
    """Traces a backbone that takes images [B, C, H, W] with `torch.export`.

    The program calls the compiled op, so what runs it must have imported kat_mm. It checks the
    rank, the channels and the range of sizes that it was traced for, which its `range_constraints`
    tell: with relative positions, say, H must make more than one patch. It does not check what
    tracing noted of the example besides, such as that H and W do not fill whole windows; there are
    tests that results are those of the model where that does not hold.

    Args:
        model: the backbone, in evaluation mode.
        images: an example; on the device that the program is for.
        any_batch: lets B be another than that of the example.
        any_size: lets H and W be others.
    """
    # Tracing takes for a rule what happens to hold for the example: that there is one image or
    # one window, or nothing to crop. So it gets an example that is larger and fits nothing.
    batch, channels, height, width = images.shape
    if any_batch:
        batch = max(batch, 2)
    if any_size:
        side = max(height, width) // 64 * 64 + 64
        height, width = side + 1, side + 65
    example = images.new_zeros(batch, channels, height, width)
    batch_dim = Dim('batch', min=1, max=LARGEST_BATCH) if any_batch else Dim.STATIC
    side_dim = Dim.DYNAMIC if any_size else Dim.STATIC
    shapes = ((batch_dim, Dim.STATIC, side_dim, side_dim),)
    with torch.no_grad():
        program = torch.export.export(model, (example,), dynamic_shapes=shapes)
    # Rules are left that compare products of the sizes: what is contiguous, what is padded. They
    # would refuse sizes for which the program is right, since its ops look these things up anew.
    # The ranges of sizes are kept apart from them, and stay.
    program._guards_code = []
    return program


def save(program: ExportedProgram, path: Path, kind: str) -> None:
    """Writes a program to a file.

    Args:
        program: from `export_backbone`.
        path: the file.
        kind: 'pt2' for `torch.export.load`, 'onnx' for ONNX of standard operators, 'aoti' for a
            package that AOTInductor compiled, for `torch._inductor.aoti_load_package`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == 'pt2':
        torch.export.save(program, path)
    elif kind == 'onnx':
        _save_onnx(program, path)
    else:
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def _save_onnx(program: ExportedProgram, path: Path) -> None:
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError('ONNX needs two packages: pip install onnx onnxscript') from error
    program = program.run_decompositions({torch.ops.kat_mm.rational.default: rational_formula})
    # With gradients, attention with a bias would take another way than when it was traced.
    with torch.no_grad():
        torch.onnx.export(program, f=path, dynamic_shapes=AXES, dynamo=True, verbose=False)


def run(path: Path, kind: str, images: Tensor) -> list[Tensor] | None:
    """Returns what an exported file computes of images; None where nothing here runs it."""
    if kind == 'pt2':
        return list(torch.export.load(path).module()(images))
    if kind == 'aoti':
        return list(torch._inductor.aoti_load_package(str(path))(images))
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return None
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    feed = {session.get_inputs()[0].name: images.cpu().numpy()}
    return [torch.from_numpy(y).to(images.device) for y in session.run(None, feed)]
