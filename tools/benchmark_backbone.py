"""Times KAT against its twins and timm's ViT: tools/benchmark_backbone.py

Models, all with a mean over the positions and a linear layer to 1000 classes behind them:
  kat       the backbone KAT
  kat-mlp   its twin, KAT(ffn='mlp')
  timm-vit  timm's vit_*_patch16_224, if timm is installed
  karat, karat-mlp  with Kolmogorov-Arnold attention, and either feed-forward layer
  karat-table-mlp   the same with all values of its basis kept, which takes much memory
Passes are a training step (forward, cross entropy, backward, AdamW) and inference. The models take
turns in each round, which times a few steps by the host's clock, launches included. On a GPU, the
kernels' part of that is what its kernels and copies run for, and the peak is what one model
allocates in all: weights, optimizer, activations; CUDA graphs have none, as torch does not count
their memory so. Ratios are those of the first model to each.
"""

import argparse
import gc
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console

from kat_mm.benchmarking.backbones import COMPILERS, MODELS, build, measure
from kat_mm.benchmarking.rows import (
    ORIGIN,
    add_step_ratios,
    append_csv,
    check_csv,
    origin,
    step_table,
)
from kat_mm.benchmarking.timing import progress
from kat_mm.command_line import choose_device, positive, run_reporting_errors
from kat_mm.errors import ConfigError, UserError

PATCH = 16
COLUMNS = (
    *ORIGIN,
    *('model', 'arch', 'pass', 'batch', 'size', 'autocast', 'mode'),
    *('median_ms', 'q1_ms', 'q3_ms', 'kernel_ms', 'peak_mib'),
    *('first_ms_ratio', 'first_kernel_ratio', 'first_mib_ratio'),
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--arch', nargs='+', choices=['tiny', 'small', 'base'], default=['small', 'base']
    )
    parser.add_argument(
        '--models',
        nargs='+',
        choices=list(MODELS),
        default=['kat', 'kat-mlp', 'timm-vit'],
        help='what to compare, the first with all others',
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
    names = args.models
    if 'timm-vit' in names and find_spec('timm') is None:
        names = [name for name in names if name != 'timm-vit']
        if not names:
            raise ConfigError('--models timm-vit: timm is not installed: pip install timm')
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
                figures = measure(
                    subjects, device, mode, args.rounds, args.steps, args.warmup, advance
                )
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f'{title}: the GPU has not enough memory; lower --batch or --infer-batches'
                ) from error
        add_step_ratios(figures, names[0], 'first')
        ratio = f'{names[0]} / this'
        console.print(step_table(title, figures.items(), 'first', 'model', ratio, digits=2))
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
