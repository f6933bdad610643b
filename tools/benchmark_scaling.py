"""Times training on 1, 2, 4, ... GPUs of this machine: tools/benchmark_scaling.py CONFIG ...

Each number of GPUs is a run of its own, of as many processes, with the same batch for each GPU. A
single process trains without an engine, which all efficiencies refer to: images/s against those of
one GPU, times their number. `communication` is the share of the time in which a GPU runs kernels
of NCCL and nothing else, waiting for slower GPUs included; on a CPU, in which a collective is under
way. `waiting` is the share in which the host waits for the data loader. Both are means over the
processes; the peak, what torch allocates, is that of the GPU with the highest.
"""

import argparse
import os
import statistics
import sys
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from kat_mm.benchmarking.communication import communication_share
from kat_mm.benchmarking.loader import TimedBatches, ready_batches
from kat_mm.benchmarking.plot import plot_scaling
from kat_mm.benchmarking.processes import run_processes
from kat_mm.benchmarking.rows import ORIGIN, add_efficiency, append_csv, check_csv, origin
from kat_mm.benchmarking.timing import host_ms, spread
from kat_mm.command_line import choose_device, positive, run_reporting_errors
from kat_mm.errors import ConfigError
from kat_mm.openmmlab import configs
from kat_mm.openmmlab.distributed import ENGINES
from kat_mm.openmmlab.training_steps import build_training

ROUNDS = 10  # into which the timed steps are divided, for their spread
COLUMNS = (
    *ORIGIN,
    *('config', 'options', 'data', 'engine', 'processes', 'batch', 'steps'),
    *('median_ms', 'q1_ms', 'q3_ms', 'images_per_s', 'efficiency'),
    *('communication', 'waiting', 'peak_mib'),
)


def measure(rank: int, count: int, config_path: str, engine: str, args: argparse.Namespace) -> dict:
    """Trains in one of `count` processes, and returns what it sees of it."""
    device = choose_device('cpu' if args.cpu else f'cuda:{rank}')
    if args.cpu:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // max(args.processes)))
    config = configs.read_config(config_path, args.cfg_options)
    config.launcher = 'none'
    if count > 1:
        ENGINES[engine](config)
    torch.manual_seed(rank)
    training = build_training(
        config,
        f'{config_path.replace("/", "_")}_{engine}_{count}',
        'benchmark_scaling',
        batches=args.batches if args.random else 0,
        random=args.random,
        batch=args.batch,
        seed=rank,
    )
    step, warmup, batches = training.step, args.warmup, None
    if not args.random:
        loader = training.make_loader()
        batches = TimedBatches(loader)
        warmup = max(warmup, ready_batches(loader) + 1)  # what is ready shows no slow loader
        step = lambda: training.step_on(next(batches))  # noqa: E731
    host_ms(step, device, warmup)
    training.check_loss()
    rounds = min(ROUNDS, args.steps)
    each = -(-args.steps // rounds)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    if batches:
        batches.waited = 0.0
    figures = dict(ms=[host_ms(step, device, each) for _ in range(rounds)], steps=rounds * each)
    training.check_loss()
    if batches:
        figures['waiting'] = 1e3 * batches.waited / (each * sum(figures['ms']))
    if device.type == 'cuda':
        figures['peak_mib'] = torch.cuda.max_memory_allocated() / 2**20
    figures['communication'] = communication_share(step, device)
    return {**figures, **origin(device), 'batch': training.batch}


def joined(ranks: list[dict]) -> dict:
    """Returns the figures of a run from those of its processes; the slowest tells the time."""
    row = {key: ranks[0][key] for key in (*ORIGIN, 'batch', 'steps')}
    ms = spread([max(times) for times in zip(*(rank['ms'] for rank in ranks), strict=True)])
    row.update(processes=len(ranks), median_ms=ms.median, q1_ms=ms.q1, q3_ms=ms.q3)
    row['images_per_s'] = 1e3 * row['batch'] * len(ranks) / ms.median
    for key, join in (('communication', statistics.fmean), ('waiting', statistics.fmean)):
        if key in ranks[0]:
            row[key] = join(rank[key] for rank in ranks)
    if 'peak_mib' in ranks[0]:
        row['peak_mib'] = max(rank['peak_mib'] for rank in ranks)
    return row


def table(rows: list[dict]) -> Table:
    result = Table(title=f'Training on {rows[0]["device"]}', title_justify='left')
    for column in ('config', 'engine'):
        result.add_column(column)
    names = ('processes', 'ms', 'images/s', 'efficiency', 'communication', 'waiting', 'peak MiB')
    for column in names:
        result.add_column(column, justify='right')
    for row in rows:
        forms = (
            *(('processes', 'd'), ('median_ms', '.1f'), ('images_per_s', '.1f')),
            *(('efficiency', '.3f'), ('communication', '.1%'), ('waiting', '.1%')),
            ('peak_mib', '.0f'),
        )
        cells = [format(row[key], form) if key in row else '' for key, form in forms]
        result.add_row(Path(row['config']).stem, row['engine'], *cells)
    return result


def counts(available: int) -> list[int]:
    """Returns the powers of 2 up to the number of GPUs, and that number."""
    return sorted({2**i for i in range(available.bit_length())} | {available})


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='+', help='config files')
    parser.add_argument(
        '--processes', nargs='+', type=positive, help='1, 2, 4, ... up to all GPUs by default'
    )
    parser.add_argument('--engines', nargs='+', choices=[*ENGINES], default=['ddp'])
    parser.add_argument('--steps', type=positive, default=100, help='timed steps, at least')
    parser.add_argument('--warmup', type=positive, default=20, help='steps before, at least')
    parser.add_argument('--batch', type=positive, help="images for each GPU, else the config's")
    parser.add_argument(
        '--random', action='store_true', help='random images and labels, without a data set'
    )
    parser.add_argument('--batches', type=positive, default=4, help='random batches to go round in')
    parser.add_argument('--cpu', action='store_true', help='processes without GPUs, by gloo')
    configs.add_settings(parser)
    parser.add_argument('--csv', type=Path, help='file to append the results to')
    parser.add_argument('--plot', type=Path, metavar='FILE.png', help='draw the results')
    args = parser.parse_args()
    available = torch.cuda.device_count()
    if args.cpu:
        os.environ['CUDA_VISIBLE_DEVICES'] = ''  # of the processes to come
        if not args.processes:
            parser.error('--cpu: give the numbers of processes, such as --processes 1 2')
    elif not available:
        raise ConfigError('torch finds no GPU; to measure without: --cpu --processes 1 2')
    args.processes = sorted(set(args.processes or counts(available)))
    if not args.cpu and args.processes[-1] > available:
        raise ConfigError(f'--processes {args.processes[-1]}: torch finds {available} GPUs')
    return args


def main():
    args = parse_args()
    if args.csv:
        check_csv(args.csv, COLUMNS)
    for path in args.configs:
        configs.read_config(path, args.cfg_options)  # whose mistakes are told before all else
    batch = [f'train_dataloader.batch_size={args.batch}'] if args.batch else []
    described = dict(
        options=' '.join([*args.cfg_options, *batch]), data='random' if args.random else 'loader'
    )
    # A process that has looked for GPUs, as the imports do, has no working copies where there are.
    start = 'spawn' if torch.cuda.is_available() else 'fork'
    rows = []
    for path in args.configs:
        for engine in args.engines:
            series = []
            for count in args.processes:
                name = f'{Path(path).stem}, {engine}, {count} processes'
                print(f'{name} ...', file=sys.stderr, flush=True)
                work = partial(measure, config_path=path, engine=engine, args=args)
                ranks = run_processes(work, count, name, start)
                series.append({**described, 'config': path, 'engine': engine, **joined(ranks)})
                add_efficiency(series)
                if args.csv:  # at once: a larger run may fail
                    append_csv(args.csv, COLUMNS, series[-1:])
            rows += series
    Console(width=120).print(table(rows))
    if args.plot:
        plot_scaling(rows, args.plot)


if __name__ == '__main__':
    run_reporting_errors(main)
