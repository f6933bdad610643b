"""Exports a backbone: to torch's own format, to ONNX, or compiled by AOTInductor."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..errors import UserError
from ..rational.reference import rational_formula

FORMATS = ('pt2', 'onnx', 'aoti')
LARGEST_BATCH = 1024


def export_backbone(
    model: nn.Module, images: Tensor, any_batch: bool = False, any_size: bool = False
) -> ExportedProgram:
    """Traces a backbone that takes images [B, C, H, W] with `torch.export`.

    The program calls the compiled op, so what runs it must have imported kat_mm.

    Args:
        model: the backbone, in evaluation mode.
        images: an example; on the device that the program is for.
        any_batch: lets B be another than that of the example, which must have two images then.
        any_size: lets H and W be others.
    """
    batch = Dim('batch', min=1, max=LARGEST_BATCH) if any_batch else Dim.STATIC
    side = Dim.DYNAMIC if any_size else Dim.STATIC
    shapes = ((batch, Dim.STATIC, side, side),)
    with torch.no_grad():
        return torch.export.export(model, (images,), dynamic_shapes=shapes)


def save(program: ExportedProgram, images: Tensor, path: Path, kind: str) -> None:
    """Writes a program to a file.

    Args:
        program: from `export_backbone`.
        images: its example.
        path: the file.
        kind: 'pt2' for `torch.export.load`, 'onnx' for ONNX of standard operators, 'aoti' for a
            package that AOTInductor compiled, for `torch._inductor.aoti_load_package`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == 'pt2':
        torch.export.save(program, path)
    elif kind == 'onnx':
        _save_onnx(program, images, path)
    else:
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def _save_onnx(program: ExportedProgram, images: Tensor, path: Path) -> None:
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError('ONNX needs two packages: pip install onnx onnxscript') from error
    table = torch.export.default_decompositions()
    table[torch.ops.kat_mm.rational.default] = rational_formula
    program = program.run_decompositions(table)
    torch.onnx.export(program, (images,), path, dynamo=True, verbose=False)


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
