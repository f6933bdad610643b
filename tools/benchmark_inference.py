"""Times predictions of several configs side by side: tools/benchmark_inference.py KAT VIT

Predictions are those of test_step, from loaded images to results on the GPU; the configs take
turns, so that a change of the machine's speed meets all of them. What a detector takes depends on
what it finds: --checkpoint gives weights that were trained. Ratios are those of the first config to
each.
"""

import argparse
from itertools import cycle, islice
from pathlib import Path

import torch
from mmengine.runner import Runner
from rich.console import Console

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
from kat_mm.openmmlab import config_checks, configs
from kat_mm.openmmlab.checkpoint_checks import check_all_loaded
from kat_mm.openmmlab.variants import add_variants, graphs_of, read_variant, variants

COLUMNS = (
    *ORIGIN,
    *('config', 'options', 'median_ms', 'q1_ms', 'q3_ms', 'kernel_ms', 'peak_mib'),
    *('first_ms_ratio', 'first_kernel_ratio', 'first_mib_ratio', 'images_per_s', 'busy', 'found'),
)


def build(config_path: str, args: argparse.Namespace, variant: str, device: torch.device):
    """Returns what predicts the next batch, and what tells how many bytes stay held between."""
    config = read_variant(config_path, args.cfg_options, variant)
    config.test_dataloader.batch_size = args.batch
    config.train_dataloader.batch_size = args.batch
    config.work_dir = str(Path('work_dirs') / 'benchmark_inference')
    config.log_level = 'WARNING'
    config.experiment_name = f'{config_path.replace("/", "_")}_{variant}'
    if not args.random:
        config_checks.check_data(config, 'test')
    if args.checkpoint:
        config_checks.check_checkpoint(args.checkpoint)
        config.load_from = args.checkpoint
    runner = Runner.from_cfg(config)
    if args.checkpoint:
        runner.load_or_resume()
        check_all_loaded(runner.model, args.checkpoint)
    else:
        runner._init_model_weights()
    model = runner.model.eval()
    graphs = graphs_of(model, variant)
    if args.random:
        from kat_mm.openmmlab.batches.random_batches import random_batches

        loaded = random_batches(config, model, args.batches)
    else:
        loaded = list(islice(runner.build_dataloader(config.test_dataloader), args.batches))
    turns = cycle(loaded)

    @torch.no_grad()
    def predict() -> list:
        with torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
            return model.test_step(next(turns))

    def held() -> int:
        return owned_bytes(model) + (graphs.held_bytes() if graphs else 0)

    return predict, held


def found(results: list) -> float | None:
    """Returns how many objects a detector finds in an image; None for other models."""
    counts = [len(result.pred_instances) for result in results if 'pred_instances' in result]
    return sum(counts) / len(counts) if counts else None


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='+', help='config files')
    parser.add_argument('--checkpoint', help='weights of all of them; random ones without')
    parser.add_argument('--steps', type=positive, default=50, help='timed predictions of each')
    parser.add_argument('--warmup', type=positive, default=10, help='predictions before')
    parser.add_argument('--batches', type=positive, default=8, help='batches to go round in')
    parser.add_argument('--batch', type=positive, default=1, help='images in a batch')
    add_variants(parser)
    parser.add_argument('--amp', action='store_true', help='in bf16 where autocast has it')
    parser.add_argument(
        '--random', action='store_true', help='random images of the size that training has'
    )
    configs.add_settings(parser)
    parser.add_argument('--csv', type=Path, help='file to append the results to')
    args = parser.parse_args()
    if args.csv:
        check_csv(args.csv, COLUMNS)
    device = choose_device(None)
    figures, calls = {}, {}
    choices = variants(args, device)
    for name, (path, variant) in choices.items():
        torch.manual_seed(0)
        calls[name], held = build(path, args, variant, device)
        for _ in range(args.warmup):
            host_ms(calls[name], device)
        results = calls[name]()
        figures[name] = gpu_usage(calls[name], held()) if device.type == 'cuda' else {}
        if (count := found(results)) is not None:
            figures[name]['found'] = count
    with progress('predictions', args.steps) as advance:
        times = time_in_turns(calls, args.steps, device, on_round=advance)
    for name, values in times.items():
        ms = spread(values)
        figures[name].update(median_ms=ms.median, q1_ms=ms.q1, q3_ms=ms.q3)
        add_throughput(figures[name], args.batch)
    add_step_ratios(figures, args.configs[0], 'first')
    source = origin(device)
    title = f'Predictions on {source["device"]}, torch {source["torch"]}'
    rows = [
        (name.replace(path, Path(path).stem), figures[name]) for name, (path, _) in choices.items()
    ]
    console = Console(width=120)
    console.print(step_table(title, rows, 'first', 'config', 'first / this', digits=1))
    console.print(throughput_table(rows, 'config'))
    if args.csv:
        options = ' '.join([*args.cfg_options, f'--batch={args.batch}', *['--amp'] * args.amp])
        described = {**source, 'options': options}
        append_csv(args.csv, COLUMNS, [{**described, 'config': k, **v} for k, v in figures.items()])


if __name__ == '__main__':
    run_reporting_errors(main)
