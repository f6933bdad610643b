"""Times the rational op against GELU and the memory floor: tools/benchmark_rational.py

Providers, which take turns in each round:
  kernel     the op: kat_mm.rational.rational
  reference  the same formula in plain PyTorch, under autograd
  compiled   the reference under torch.compile
  gelu       torch.nn.functional.gelu; where the result has another dtype gelu+cast, with x cast to
             it before
  copy       the floor, what memory allows: forward reads x and writes y, backward reads x and the
             gradient and adds them up into another
  cast       the cast alone, where the result has another dtype
and any MODULE:CALLABLE of (x, numerator, denominator) -> y, differentiable, for channels last.

What is measured:
  forward    one call without autograd
  backward   the gradients of x and of all coefficients: of kernel and gelu by their backward op, of
             the others by torch.autograd.grad on one graph again and again
  saved      what autograd keeps for the backward pass, the activation included
  memory     on a GPU: the most that is allocated over both passes beyond the inputs
On a GPU its own clock times batches of about 2 ms whose launches are queued before. Calls go round
in as many tensors as fill --working-set, so that it is memory that is measured and not a cache.
"""

import argparse
import math
from pathlib import Path

import torch
from rich.console import Console

from kat_mm.benchmarking.activations import add_ratios, measure, table
from kat_mm.benchmarking.plot import plot_sizes
from kat_mm.benchmarking.providers import (
    BUILT_IN,
    Case,
    Provider,
    built_in,
    by_autograd,
    make_inputs,
)
from kat_mm.benchmarking.rows import ORIGIN, append_csv, check_csv, origin
from kat_mm.benchmarking.timing import progress
from kat_mm.command_line import choose_device, load_callable, positive, run_reporting_errors
from kat_mm.errors import ConfigError

SHAPES = ['128x197x3072', '8x4096x3072', 'cf:8x256x200x256', '128x197x768', '2x4150x1536']
DTYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16, 'fp32': torch.float32}
SIZES = (16, 27)  # of the sweep, as powers of 2
SWEEP_CHANNELS, SWEEP_DTYPE, SWEEP_PROVIDERS = 1536, 'bf16', ('kernel', 'gelu', 'copy')
COLUMNS = (
    *ORIGIN,
    *('provider', 'pass', 'shape', 'channel_dim', 'dtype', 'order', 'groups'),
    *('unit', 'median', 'q1', 'q3', 'to_gelu', 'to_floor'),
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--shapes', nargs='+', metavar='[cf:]AxBxC', help='cf: channels first')
    parser.add_argument(
        '--dtypes', nargs='+', metavar='IN[:OUT]', help='bf16 fp16 fp32 fp32:bf16 by default'
    )
    parser.add_argument('--order', type=int, nargs=2, default=(5, 4), help='degrees of P and Q')
    parser.add_argument('--groups', type=positive, default=8, help='groups of channels')
    parser.add_argument('--only', nargs='+', choices=BUILT_IN, help='built-in providers')
    parser.add_argument(
        '--provider', action='append', default=[], metavar='MODULE:CALLABLE', help='one more'
    )
    parser.add_argument('--device', help='cuda or cpu')
    parser.add_argument('--rounds', type=positive, help='by default 30 on a GPU, 5 on a CPU')
    parser.add_argument('--working-set', type=int, default=256, metavar='MIB', help='see above')
    parser.add_argument('--csv', type=Path, help='file to append the results to')
    parser.add_argument(
        '--sizes',
        type=int,
        nargs='*',
        metavar='LOG2',
        help=f'instead of shapes: rows of {SWEEP_CHANNELS} channels in {SWEEP_DTYPE}, from about '
        f'2^{SIZES[0]} to 2^{SIZES[1]} elements, or from and to other powers',
    )
    parser.add_argument('--plot', type=Path, metavar='FILE.png', help='draw the times of --sizes')
    return parser.parse_args()


def parse_case(shape: str, dtype: str, groups: int) -> Case:
    """Returns the case of an item of --shapes and one of --dtypes."""
    first = shape.startswith('cf:')
    sizes = shape.removeprefix('cf:').split('x')
    if not all(size.isdecimal() and int(size) for size in sizes) or len(sizes) < 1 + first:
        raise ConfigError(
            f'--shapes {shape}: must be sizes such as 128x197x768, or cf:8x256x200x256 with the '
            'channels at dimension 1'
        )
    sizes = tuple(map(int, sizes))
    channels = sizes[1 if first else -1]
    if channels % groups:
        raise ConfigError(
            f'--shapes {shape}: {channels} channels cannot be divided into --groups {groups}'
        )
    dtype_in, _, dtype_out = dtype.partition(':')
    allowed = [*DTYPES, 'fp32:bf16', 'fp32:fp16']
    if dtype not in allowed:
        raise ConfigError(f'--dtypes {dtype}: known are {", ".join(allowed)}')
    return Case(sizes, 1 if first else -1, DTYPES[dtype_in], DTYPES[dtype_out or dtype_in])


def cases(args: argparse.Namespace) -> list[tuple[str, str, Case]]:
    """Returns what to measure: the shape and dtype as they are written, and the case."""
    shapes, dtypes = args.shapes or SHAPES, args.dtypes or ['bf16', 'fp16', 'fp32', 'fp32:bf16']
    if args.sizes is not None:
        if args.shapes or args.dtypes:
            raise ConfigError('--sizes brings its own shapes and dtype: drop --shapes and --dtypes')
        if len(args.sizes) not in (0, 2) or sorted(args.sizes) != args.sizes:
            raise ConfigError(
                f'--sizes {" ".join(map(str, args.sizes))}: give the lowest and the highest power, '
                'or none'
            )
        low, high = args.sizes or SIZES
        rows = [max(round(2**power / SWEEP_CHANNELS), 1) for power in range(low, high + 1)]
        shapes, dtypes = [f'{row}x{SWEEP_CHANNELS}' for row in rows], [SWEEP_DTYPE]
    return [(s, d, parse_case(s, d, args.groups)) for s in shapes for d in dtypes]


def chosen_providers(args: argparse.Namespace, case: Case, added: dict) -> dict[str, Provider]:
    """Returns the providers that the options ask for and that can do this case."""
    only = args.only or (BUILT_IN if args.sizes is None else SWEEP_PROVIDERS)
    providers = built_in(case, only)
    if not providers:
        raise ConfigError(
            f'--only {" ".join(only)}: does nothing where the dtype stays the same; add kernel, or '
            '--dtypes fp32:bf16'
        )
    if case.channel_dim == -1:
        for name, function in added.items():
            providers[name] = by_autograd(
                lambda *inputs, function=function: function(*inputs).to(case.out_dtype)
            )
    return providers


def main():
    args = parse_args()
    if args.plot and args.sizes is None:
        raise ConfigError(f'--plot {args.plot}: draws the times of --sizes; add that')
    if args.plot and args.plot.suffix.lower() != '.png':
        raise ConfigError(f'--plot {args.plot}: the name must end in .png')
    if not all(1 <= degree <= 8 for degree in args.order):
        raise ConfigError(f'--order {args.order[0]} {args.order[1]}: both lie between 1 and 8')
    device = choose_device(args.device)
    rounds = args.rounds or (30 if device.type == 'cuda' else 5)
    todo = cases(args)
    added = {name: load_callable(name, '--provider') for name in args.provider}
    if args.csv:
        check_csv(args.csv, COLUMNS)
    source = origin(device)
    console = Console(width=120)
    console.print(f'{source["device"]}, torch {source["torch"]}, kat_mm {source["commit"]}')
    for name in added:
        if any(case.channel_dim == 1 for _, _, case in todo):
            console.print(f'{name} is left out of channels-first shapes, which it cannot be told')
    rows = []
    for number, (shape, dtype, case) in enumerate(todo, 1):
        with progress(f'{shape} {dtype} ({number} of {len(todo)})', 2 * rounds) as advance:
            inputs = make_inputs(case, args.order, args.groups, device, args.working_set << 20)
            figures = measure(chosen_providers(args, case, added), inputs, rounds, advance)
        add_ratios(figures)
        console.print(table(f'{shape} {dtype}', figures))
        described = dict(
            shape=shape.removeprefix('cf:'),
            channel_dim=case.channel_dim,
            dtype=dtype,
            order='{}/{}'.format(*args.order),
            groups=args.groups,
        )
        new = [
            {**source, **described, 'pass': part, 'provider': name, **figure}
            for part, by_provider in figures.items()
            for name, figure in by_provider.items()
        ]
        if args.csv:
            append_csv(args.csv, COLUMNS, new)
        rows += [{**row, 'elements': math.prod(case.shape)} for row in new]
    if args.plot:
        plot_sizes([row for row in rows if row['unit'] == 'ms'], args.plot)
        print(args.plot)


if __name__ == '__main__':
    run_reporting_errors(main)
