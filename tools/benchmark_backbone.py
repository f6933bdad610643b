"""Times KAT against its twin with plain MLPs and timm's ViT: tools/benchmark_backbone.py

Models, all with a mean over the positions and a linear layer to 1000 classes behind them:
  kat       the backbone KAT
  kat-mlp   its twin, KAT(ffn='mlp')
  timm-vit  timm's vit_*_patch16_224, if timm is installed
Passes are a training step (forward, cross entropy, backward, AdamW) and inference. The models take
turns in each round, which times a few steps by the host's clock, launches included. On a GPU, the
kernels' part of that is what its kernels and copies run for, and the peak is what one model
allocates in all: weights, optimizer, activations; CUDA graphs have none, as torch does not count
their memory so. Ratios are those of KAT to each.
"""

import argparse
import gc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from kat_mm.attention.mimetic import skip_mimetic_init
from kat_mm.benchmarking.rows import (
    ORIGIN,
    add_step_ratios,
    append_csv,
    check_csv,
    origin,
    step_table,
)
from kat_mm.benchmarking.timing import gpu_usage, owned_bytes, progress, spread, time_in_turns
from kat_mm.command_line import choose_device, positive, run_reporting_errors
from kat_mm.errors import ConfigError, UserError
from kat_mm.models import KAT

try:
    import timm
except ImportError:
    timm = None

CLASSES = 1000
PATCH = 16
COMPILERS = {
    'eager': lambda model: model,
    'compile': torch.compile,
    'cudagraphs': lambda model: torch.compile(model, mode='reduce-overhead'),
}
COLUMNS = (
    *ORIGIN,
    *('model', 'arch', 'pass', 'batch', 'size', 'autocast', 'mode'),
    *('median_ms', 'q1_ms', 'q3_ms', 'kernel_ms', 'peak_mib'),
    *('kat_ms_ratio', 'kat_kernel_ratio', 'kat_mib_ratio'),
)


class Classifier(nn.Module):
    """Computes classes of images from the mean of a backbone's map or tokens."""

    def __init__(self, backbone: nn.Module, features: Callable[[Tensor], Tensor], dims: int):
        super().__init__()
        self.backbone = backbone
        self.features = features
        self.head = nn.Linear(dims, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def kat(arch: str, size: int, ffn: str = 'gr_kan') -> Classifier:
    with skip_mimetic_init():
        backbone = KAT(arch, size, ffn=ffn)
    return Classifier(
        backbone, lambda images: backbone(images)[0].mean((2, 3)), backbone.embed_dims
    )


def timm_vit(arch: str, size: int) -> Classifier:
    backbone = timm.create_model(f'vit_{arch}_patch16_224', img_size=size, num_classes=0)
    return Classifier(
        backbone, lambda images: backbone.forward_features(images).mean(1), backbone.embed_dim
    )


MODELS = {
    'kat': kat,
    'kat-mlp': lambda arch, size: kat(arch, size, 'mlp'),
    'timm-vit': timm_vit,
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--arch', nargs='+', choices=['tiny', 'small', 'base'], default=['small', 'base']
    )
    parser.add_argument(
        '--passes', nargs='+', choices=['train', 'infer'], default=['train', 'infer']
    )
    parser.add_argument('--batch', type=positive, default=64, help='images of a training step')
    parser.add_argument(
        '--infer-batches', type=positive, nargs='+', default=[1, 8, 64], help='images of inference'
    )
    parser.add_argument('--size', type=positive, default=224, help='side of the images in pixels')
    parser.add_argument(
        '--modes',
        nargs='+',
        choices=list(COMPILERS),
        default=['eager'],
        help='compile is torch.compile, cudagraphs its mode reduce-overhead',
    )
    parser.add_argument('--autocast', choices=['bf16', 'none'], default='bf16')
    parser.add_argument('--device', help='cuda or cpu')
    parser.add_argument('--rounds', type=positive, help='by default 30 on a GPU, 5 on a CPU')
    parser.add_argument('--steps', type=positive, default=5, help='steps of a round')
    parser.add_argument('--warmup', type=positive, default=5, help='steps before')
    parser.add_argument('--csv', type=Path, help='file to append the results to')
    return parser.parse_args()


@dataclass(frozen=True)
class Subject:
    """A model that is measured: a step of one pass, and the tensors that it owns all the time."""

    step: Callable[[], Tensor]
    model: nn.Module
    optimizer: torch.optim.Optimizer | None = None


def build(name: str, arch: str, part: str, mode: str, images: Tensor, autocast: str) -> Subject:
    """Makes a model, and what makes a step of one pass of it."""
    device = images.device
    torch.manual_seed(0)
    model = MODELS[name](arch, images.shape[-1]).to(device).train(part == 'train')
    forward = COMPILERS[mode](model)
    begin = torch.compiler.cudagraph_mark_step_begin if mode == 'cudagraphs' else lambda: None
    dtype = torch.bfloat16 if autocast == 'bf16' else None

    def mixed():
        return torch.autocast(device.type, dtype) if dtype else nullcontext()

    def infer() -> Tensor:
        begin()
        with torch.no_grad(), mixed():
            return forward(images)

    if part == 'infer':
        return Subject(infer, model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device.type == 'cuda')
    labels = torch.arange(len(images), device=device) % CLASSES

    def train() -> Tensor:
        begin()
        with mixed():
            loss = F.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return Subject(train, model, optimizer)


def measure(
    subjects: dict[str, Subject], args: argparse.Namespace, device: torch.device, mode: str, advance
) -> dict[str, dict]:
    """Returns the figures of each subject, in the columns of the CSV file."""
    figures = {}
    for name, subject in subjects.items():
        for _ in range(args.warmup):
            result = subject.step()
        if not result.isfinite().all():
            raise UserError(f'{name}: its result is not finite; try --autocast none')
        del result
        advance()
    for name, subject in subjects.items():
        figures[name] = {}
        if device.type == 'cuda':
            owned = owned_bytes(subject.model, subject.optimizer)
            figures[name] = gpu_usage(subject.step, owned)
            if mode == 'cudagraphs':  # they have pools of their own, and a replay allocates nothing
                del figures[name]['peak_mib']
    steps = {name: subject.step for name, subject in subjects.items()}
    times = time_in_turns(steps, args.rounds, device, args.steps, on_round=advance)
    for name, values in times.items():
        ms = spread(values)
        figures[name].update(median_ms=ms.median, q1_ms=ms.q1, q3_ms=ms.q3)
    return figures


def main():
    args = parse_args()
    device = choose_device(args.device)
    args.rounds = args.rounds or (30 if device.type == 'cuda' else 5)
    if args.size % PATCH:
        raise ConfigError(f'--size {args.size}: must be a multiple of the patch size, {PATCH}')
    if args.csv:
        check_csv(args.csv, COLUMNS)
    source = origin(device)
    console = Console(width=120)
    console.print(f'{source["device"]}, torch {source["torch"]}, kat_mm {source["commit"]}')
    names = [name for name in MODELS if name != 'timm-vit' or timm]
    if not timm:
        console.print('timm-vit is left out, as timm is not installed: pip install timm')
    parts = [('train', args.batch)] if 'train' in args.passes else []
    parts += [('infer', batch) for batch in args.infer_batches if 'infer' in args.passes]
    todo = [(a, p, b, m) for a in args.arch for p, b in parts for m in args.modes]
    for number, (arch, part, batch, mode) in enumerate(todo, 1):
        title = f'{arch}, {part}, batch {batch}, {mode}'
        with progress(f'{title} ({number} of {len(todo)})', len(names) + args.rounds) as advance:
            try:
                images = torch.randn(batch, 3, args.size, args.size, device=device)
                subjects = {n: build(n, arch, part, mode, images, args.autocast) for n in names}
                figures = measure(subjects, args, device, mode, advance)
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f'{title}: the GPU has not enough memory; lower --batch or --infer-batches'
                ) from error
        add_step_ratios(figures, 'kat', 'kat')
        console.print(step_table(title, figures.items(), 'kat', 'model', 'KAT / this', digits=2))
        described = dict(arch=arch, batch=batch, size=args.size, autocast=args.autocast, mode=mode)
        if args.csv:
            case = {**source, **described, 'pass': part}
            append_csv(args.csv, COLUMNS, [{**case, 'model': k, **v} for k, v in figures.items()])
        del subjects
        gc.collect()  # a model and what is compiled from it refer to each other
        if mode != 'eager':
            torch.compiler.reset()


if __name__ == '__main__':
    run_reporting_errors(main)
