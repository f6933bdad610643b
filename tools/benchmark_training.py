"""Times training steps of several configs side by side: tools/benchmark_training.py KAT VIT

Steps are those of training, forward, backward and optimizer, on batches that were loaded before;
the configs take turns, so that a change of the machine's speed meets all of them. On a GPU, the
kernels' part of a step is what its kernels and copies run for, `busy` is its share of the step, and
the peak is what model, optimizer and step allocate. Ratios are those of the first config to each.
With --loader, steps on the batches of the config's data loader follow, one config at a time:
`waiting` is the share of their time that the loader has them wait.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from kat_mm.benchmarking.loader import loader_usage
from kat_mm.benchmarking.rows import (
    ORIGIN,
    add_step_ratios,
    add_throughput,
    append_csv,
    check_csv,
    origin,
    step_table,
    throughput_table,
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
from kat_mm.graphs import GraphedParts
from kat_mm.openmmlab import configs
from kat_mm.openmmlab.training_steps import TrainingSteps, build_training
from kat_mm.openmmlab.variants import add_variants, graphs_of, read_variant, variants

COLUMNS = (
    *ORIGIN,
    *('config', 'options', 'median_ms', 'q1_ms', 'q3_ms', 'kernel_ms', 'peak_mib'),
    *('images_per_s', 'busy', 'loader_ms', 'waiting'),
    *('first_ms_ratio', 'first_kernel_ratio', 'first_mib_ratio'),
)


@dataclass
class Subject:
    """A config's training.

    Attributes:
        training: makes its steps.
        graphs: its parts that run by CUDA graphs.
    """

    training: TrainingSteps
    graphs: GraphedParts | None

    def step(self) -> None:
        """Makes one training step, over the loaded batches in turn."""
        self.training.step()
        self.training.check_loss()

    def step_on(self, batch: dict) -> None:
        """Makes one training step on a batch."""
        self.training.step_on(batch)
        self.training.check_loss()

    def held(self) -> int:
        """Returns the bytes that the model holds between its steps, once it has made one."""
        own = owned_bytes(self.training.model, self.training.optimizer.optimizer)
        return own + (self.graphs.held_bytes() if self.graphs else 0)


def build(config_path: str, args: argparse.Namespace, variant: str) -> Subject:
    config = read_variant(config_path, args.cfg_options, variant)
    training = build_training(
        config,
        f'{config_path.replace("/", "_")}_{variant}',
        'benchmark_training',
        batches=args.batches,
        random=args.random,
        batch=args.batch,
    )
    return Subject(training, graphs_of(training.model, variant))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='+', help='config files')
    parser.add_argument('--steps', type=positive, default=50, help='timed steps of each config')
    parser.add_argument('--warmup', type=positive, default=10, help='steps before')
    parser.add_argument('--batches', type=positive, default=8, help='batches to go round in')
    add_variants(parser)
    parser.add_argument('--batch', type=positive, help="images in a batch, by default the config's")
    parser.add_argument(
        '--random', action='store_true', help='random images and labels, without a data set'
    )
    parser.add_argument(
        '--loader', action='store_true', help="steps on the batches of the config's loader, too"
    )
    configs.add_settings(parser)
    parser.add_argument('--csv', type=Path, help='file to append the results to')
    args = parser.parse_args()
    if args.random and args.loader:
        parser.error('--random and --loader: a loader needs the data set')
    if args.csv:
        check_csv(args.csv, COLUMNS)
    device = choose_device(None)
    figures, subjects = {}, {}
    choices = variants(args, device)
    for name, (path, variant) in choices.items():
        torch.manual_seed(0)
        subjects[name] = build(path, args, variant)
        for _ in range(args.warmup):
            host_ms(subjects[name].step, device)
    for name, subject in subjects.items():  # when all are warm: the first step's is nobody's
        on_gpu = device.type == 'cuda'
        figures[name] = gpu_usage(subject.step, subject.held()) if on_gpu else {}
    with progress('steps', args.steps) as advance:
        steps = {name: subject.step for name, subject in subjects.items()}
        times = time_in_turns(steps, args.steps, device, on_round=advance)

    for name, values in times.items():
        ms = spread(values)
        figures[name].update(median_ms=ms.median, q1_ms=ms.q1, q3_ms=ms.q3)
        add_throughput(figures[name], subjects[name].training.batch)
    if args.loader:
        for name, subject in subjects.items():
            usage = loader_usage(
                subject.training.make_loader(), subject.step_on, args.steps, device
            )
            figures[name].update(usage)
    add_step_ratios(figures, args.configs[0], 'first')
    source = origin(device)
    title = f'Training steps on {source["device"]}, torch {source["torch"]}'
    rows = [
        (name.replace(path, Path(path).stem), figures[name]) for name, (path, _) in choices.items()
    ]
    table = step_table(title, rows, 'first', 'config', 'first / this', digits=1)
    Console(width=120).print(table)
    Console(width=120).print(throughput_table(rows, 'config'))
    if args.csv:
        batch = [f'train_dataloader.batch_size={args.batch}'] if args.batch else []
        options = ' '.join([*args.cfg_options, *batch])
        described = {**source, 'options': options}
        append_csv(args.csv, COLUMNS, [{**described, 'config': k, **v} for k, v in figures.items()])


if __name__ == '__main__':
    run_reporting_errors(main)
