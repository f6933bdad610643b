"""Times training steps of several configs side by side: tools/benchmark_training.py KAT VIT

Steps are those of training, forward, backward and optimizer, on batches that were loaded before;
the configs take turns, so that a change of the machine's speed meets all of them. Ratios are those
of the first config to each.
"""

import argparse
from pathlib import Path

import torch
from mmengine.runner import Runner
from rich.console import Console
from rich.table import Table

import kat_mm  # noqa: F401
from kat_mm.engine import cli
from kat_mm.engine.benchmarking import (
    ORIGIN,
    append_csv,
    check_csv,
    choose_device,
    host_ms,
    origin,
    positive,
    progress,
    spread,
    time_in_turns,
)

COLUMNS = (
    *ORIGIN,
    *('config', 'median_ms', 'q1_ms', 'q3_ms', 'peak_mib', 'first_ms_ratio', 'first_mib_ratio'),
)


def build(config_path: str, options: dict, batches: int):
    """Returns a function that makes one training step, over the batches in turn."""
    args = argparse.Namespace(
        config=config_path, cfg_options=options, launcher='none', work_dir=None, local_rank=0
    )
    config = cli.load_config(args)
    config.work_dir = str(Path('work_dirs') / 'benchmark_training')
    config.log_level = 'WARNING'
    config.experiment_name = config_path.replace('/', '_')
    cli.check_data(config, 'train')
    cli.check_pretrained(config)
    runner = Runner.from_cfg(config)
    runner._init_model_weights()
    optimizer = runner.build_optim_wrapper(config.optim_wrapper)
    loader = iter(runner.build_dataloader(config.train_dataloader))
    loaded = [next(loader) for _ in range(batches)]
    model = runner.model.train()
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        loss = model.train_step(loaded[steps % batches], optimizer)['loss']
        if not torch.isfinite(loss):
            raise SystemExit(f'error: the loss became {loss.item()}')

    return step


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='+', help='config files')
    parser.add_argument('--steps', type=positive, default=50, help='timed steps of each config')
    parser.add_argument('--warmup', type=positive, default=10, help='steps before')
    parser.add_argument('--batches', type=positive, default=8, help='batches to go round in')
    parser.add_argument('--cfg-options', nargs='+', action=cli.DictAction, default={})
    parser.add_argument('--csv', type=Path, help='file to append the results to')
    args = parser.parse_args()
    if args.csv:
        check_csv(args.csv, COLUMNS)
    device = choose_device(None)
    gpu = device.type == 'cuda'
    steps, memory = {}, {}
    for path in args.configs:
        # The memory of a step alone, beyond what the configs before it hold.
        torch.manual_seed(0)
        held = torch.cuda.memory_allocated() if gpu else 0
        steps[path] = build(path, args.cfg_options, args.batches)
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        for _ in range(args.warmup):
            host_ms(steps[path], device)
        memory[path] = torch.cuda.max_memory_allocated() - held if gpu else 0
    with progress('steps', args.steps) as advance:
        times = time_in_turns(steps, args.steps, device, on_round=advance)

    source, rows = origin(device), []
    table = Table(title=f'Training steps on {source["device"]}, torch {source["torch"]}')
    for column in ('config', 'ms', 'quartiles', 'first / this', 'peak MiB', 'first / this'):
        table.add_column(column)
    spreads = {path: spread(values) for path, values in times.items()}
    first = args.configs[0]
    for path, ms in spreads.items():
        ratio = spreads[first].median / ms.median
        row = dict(config=path, median_ms=ms.median, q1_ms=ms.q1, q3_ms=ms.q3, first_ms_ratio=ratio)
        cells = [Path(path).stem, f'{ms.median:.1f}', f'{ms.q1:.1f} - {ms.q3:.1f}', f'{ratio:.3f}']
        if gpu:
            row.update(peak_mib=memory[path] / 2**20, first_mib_ratio=memory[first] / memory[path])
            cells += [f'{row["peak_mib"]:.0f}', f'{row["first_mib_ratio"]:.3f}']
        table.add_row(*cells)
        rows.append({**source, **row})
    Console(width=120).print(table)
    if args.csv:
        append_csv(args.csv, COLUMNS, rows)


if __name__ == '__main__':
    cli.run_reporting_errors(main)
