"""Times training steps of several configs side by side: tools/benchmark_training.py KAT VIT

Steps are those of training, forward, backward and optimizer, on batches that were loaded before;
the configs take turns, so that a change of the machine's speed meets all of them. On a GPU, the
kernels' part of a step is what its kernels and copies run for, and the peak is what model,
optimizer and step allocate. Ratios are those of the first config to each.
"""

import argparse
from pathlib import Path

import torch
from mmengine.runner import Runner
from rich.console import Console

from kat_mm.benchmarking.rows import (
    ORIGIN,
    add_step_ratios,
    append_csv,
    check_csv,
    origin,
    step_table,
)
from kat_mm.benchmarking.timing import (
    gpu_usage,
    host_ms,
    owned_bytes,
    progress,
    spread,
    time_in_turns,
)
from kat_mm.command_line import choose_device, positive, run_reporting_errors
from kat_mm.errors import ConfigError
from kat_mm.graphs import graph_parts
from kat_mm.openmmlab import config_checks, configs
from kat_mm.openmmlab.hooks.cuda_graph import default_parts

BASELINE = '(stock heads)'
GRAPHS = '(CUDA graphs)'
COLUMNS = (
    *ORIGIN,
    *('config', 'options', 'median_ms', 'q1_ms', 'q3_ms', 'kernel_ms', 'peak_mib'),
    *('first_ms_ratio', 'first_kernel_ratio', 'first_mib_ratio'),
)


def build(config_path: str, args: argparse.Namespace, variant: str):
    """Returns what makes one training step, over the batches in turn, and what it takes of a GPU.

    The latter is a function of a warm model.
    """
    config = configs.read_config(config_path, args.cfg_options)
    if variant == BASELINE:
        for node in configs.nested(config.model, 'type'):
            node.type = str(node.type).removeprefix('Fused')
    if args.batch:
        config.train_dataloader.batch_size = args.batch
    config.work_dir = str(Path('work_dirs') / 'benchmark_training')
    config.log_level = 'WARNING'
    config.experiment_name = f'{config_path.replace("/", "_")}_{variant}'
    if not args.random:
        config_checks.check_data(config, 'train')
    config_checks.check_pretrained(config)
    runner = Runner.from_cfg(config)
    runner._init_model_weights()
    optimizer = runner.build_optim_wrapper(config.optim_wrapper)
    model = runner.model.train()
    if args.random:
        from kat_mm.openmmlab.random_batches import random_batches

        loaded = random_batches(model, config.train_dataloader.batch_size, args.batches)
    else:
        loader = iter(runner.build_dataloader(config.train_dataloader))
        loaded = [next(loader) for _ in range(args.batches)]
    # The hook's, where there is a run.
    graphs = graph_parts(model, default_parts(model)) if variant == GRAPHS else None
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        loss = model.train_step(loaded[steps % args.batches], optimizer)['loss']
        if not torch.isfinite(loss):
            raise SystemExit(f'error: the loss became {loss.item()}')

    def usage() -> dict[str, float]:
        held = graphs.held_bytes() if graphs else 0
        return gpu_usage(step, owned_bytes(model, optimizer.optimizer) + held)

    return step, usage


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='+', help='config files')
    parser.add_argument('--steps', type=positive, default=50, help='timed steps of each config')
    parser.add_argument('--warmup', type=positive, default=10, help='steps before')
    parser.add_argument('--batches', type=positive, default=8, help='batches to go round in')
    parser.add_argument(
        '--baseline', action='store_true', help='each config with the heads of mmseg itself, too'
    )
    parser.add_argument(
        '--graphs', action='store_true', help='each config by CUDA graphs, too (on a GPU)'
    )
    parser.add_argument('--batch', type=positive, help="images in a batch, by default the config's")
    parser.add_argument(
        '--random', action='store_true', help='random images and label maps, for segmentors'
    )
    configs.add_settings(parser)
    parser.add_argument('--csv', type=Path, help='file to append the results to')
    args = parser.parse_args()
    if args.csv:
        check_csv(args.csv, COLUMNS)
    device = choose_device(None)
    if args.graphs and device.type != 'cuda':
        raise ConfigError('--graphs: there is no GPU here')
    figures, steps, usages = {}, {}, {}
    variants = ['', *([BASELINE] if args.baseline else []), *([GRAPHS] if args.graphs else [])]
    subjects = {
        f'{path} {variant}'.strip(): (path, variant)
        for variant in variants
        for path in args.configs
    }
    for name, (path, variant) in subjects.items():
        torch.manual_seed(0)
        steps[name], usages[name] = build(path, args, variant)
        for _ in range(args.warmup):
            host_ms(steps[name], device)
    for name in subjects:  # when all are warm: what the first step of all allocates is nobody's
        figures[name] = usages[name]() if device.type == 'cuda' else {}
    with progress('steps', args.steps) as advance:
        times = time_in_turns(steps, args.steps, device, on_round=advance)

    for path, values in times.items():
        ms = spread(values)
        figures[path].update(median_ms=ms.median, q1_ms=ms.q1, q3_ms=ms.q3)
    add_step_ratios(figures, args.configs[0], 'first')
    source = origin(device)
    title = f'Training steps on {source["device"]}, torch {source["torch"]}'
    rows = [
        (name.replace(path, Path(path).stem), figures[name]) for name, (path, _) in subjects.items()
    ]
    table = step_table(title, rows, 'first', 'config', 'first / this', digits=1)
    Console(width=120).print(table)
    if args.csv:
        batch = [f'train_dataloader.batch_size={args.batch}'] if args.batch else []
        options = ' '.join([*args.cfg_options, *batch])
        described = {**source, 'options': options}
        append_csv(args.csv, COLUMNS, [{**described, 'config': k, **v} for k, v in figures.items()])


if __name__ == '__main__':
    run_reporting_errors(main)
