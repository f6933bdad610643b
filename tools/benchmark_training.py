"""Times training steps of several configs side by side: tools/benchmark_training.py KAT VIT

Steps are those of training, forward, backward and optimizer, on batches that were loaded before;
the configs take turns, so that a change of the machine's speed meets all of them. Ratios are those
of the first config to each.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import track
from rich.table import Table

import kat_mm  # noqa: F401
from kat_mm.engine import cli


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

    def step() -> dict:
        nonlocal steps
        steps += 1
        return model.train_step(loaded[steps % batches], optimizer)

    return step


def timed(step, gpu: bool) -> float:
    """Returns the milliseconds of one step."""
    if gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    loss = step()['loss']
    if not torch.isfinite(loss):
        raise SystemExit(f'error: the loss became {loss.item()}')
    if gpu:
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='+', help='config files')
    parser.add_argument('--steps', type=int, default=50, help='timed steps of each config')
    parser.add_argument('--warmup', type=int, default=10, help='steps before')
    parser.add_argument('--batches', type=int, default=8, help='batches to go round in')
    parser.add_argument('--cfg-options', nargs='+', action=cli.DictAction, default={})
    args = parser.parse_args()
    gpu = torch.cuda.is_available()
    steps, memory = {}, {}
    for path in args.configs:
        # The memory of a step alone, beyond what the configs before it hold.
        torch.manual_seed(0)
        held = torch.cuda.memory_allocated() if gpu else 0
        steps[path] = build(path, args.cfg_options, args.batches)
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        for _ in range(args.warmup):
            timed(steps[path], gpu)
        memory[path] = torch.cuda.max_memory_allocated() - held if gpu else 0
    times = {path: [] for path in args.configs}
    for _ in track(range(args.steps), 'steps', console=Console(stderr=True)):
        for path, step in steps.items():
            times[path].append(timed(step, gpu))

    device = torch.cuda.get_device_name() if gpu else 'CPU'
    table = Table(title=f'Training steps on {device}, torch {torch.__version__}')
    for column in ('config', 'ms', 'quartiles', 'first / this', 'peak MiB', 'first / this'):
        table.add_column(column)
    base = args.configs[0]
    for path in args.configs:
        low, median, high = statistics.quantiles(times[path], n=4)
        ratio = statistics.median(times[base]) / median
        share = f'{memory[base] / memory[path]:.3f}' if gpu else ''
        peak = f'{memory[path] / 2**20:.0f}' if gpu else ''
        table.add_row(
            Path(path).stem, f'{median:.1f}', f'{low:.1f} - {high:.1f}', f'{ratio:.3f}', peak, share
        )
    Console(width=120).print(table)


if __name__ == '__main__':
    cli.run_reporting_errors(main)
