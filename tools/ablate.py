"""Trains what a study compares, with all its seeds: tools/ablate.py configs/studies/attention.py"""

import argparse
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from kat_mm.benchmarking.studies.plot import plot_scores
from kat_mm.benchmarking.studies.pool import Pool, environment, find_gpus
from kat_mm.benchmarking.studies.runs import Run, plan
from kat_mm.benchmarking.studies.study import Study, read_study
from kat_mm.benchmarking.studies.summary import finished, tables, write_rows
from kat_mm.command_line import check_folder, positive, run_reporting_errors
from kat_mm.errors import DataError
from kat_mm.openmmlab.configs import read_config

TOOLS = Path(__file__).resolve().parent
TRAIN = (sys.executable, str(TOOLS / 'train.py'))
WAY_OUT = 'the same command goes on'
COLUMNS = (
    *(TextColumn('runs'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()),
    *(TextColumn('left:'), TimeRemainingColumn()),
    TextColumn('{task.description}', style='red'),
)


def parse_args():
    parser = argparse.ArgumentParser(
        description='Train what a study compares, with all its seeds. The same command again goes '
        'on where an earlier one ended.'
    )
    parser.add_argument(
        'study', type=Path, help='file of the study, such as those in configs/studies'
    )
    parser.add_argument(
        '--jobs', type=positive, help='trainings at a time, by default one for each GPU'
    )
    parser.add_argument('--cpu', action='store_true', help='leave the GPUs alone')
    parser.add_argument(
        '--work-dir', type=Path, help='where runs are kept, by default work_dirs/NAME'
    )
    parser.add_argument(
        '--out', type=Path, help='where NAME.csv and NAME.png go, by default the work dir'
    )
    parser.add_argument('--limit', type=positive, metavar='SECONDS', help='stop after so long')
    parser.add_argument(
        '--quick', action='store_true', help="try the study out, with its 'quick' settings"
    )
    parser.add_argument('--report', action='store_true', help='train nothing, show what there is')
    return parser.parse_args()


def main():
    args = parse_args()
    start = time.monotonic()
    study = read_study(args.study)
    work_dir = args.work_dir or Path('work_dirs') / study.name
    out = args.out or work_dir
    runs = plan(study, work_dir, resolve, args.quick)
    check_folder('--work-dir', work_dir)
    check_folder('--out', out)
    gpus = [] if args.cpu else find_gpus()
    console = Console(width=None if sys.stdout.isatty() else 140)
    left, failed = [run for run in runs if run.result() is None], []
    others = {*work_dir.glob('*/*/seed*')} - {run.folder for run in runs}
    console.print(
        f'{study.name}: {len(runs)} runs in {work_dir}, {len(runs) - len(left)} of them finished'
        + (f'; {len(others)} of other settings are left alone' if others else '')
    )

    def write() -> None:
        write_rows(out / f'{study.name}.csv', finished(study, runs))

    write()
    try:
        if left and not args.report:
            prepare(study)
            with Progress(*COLUMNS, console=console) as progress:
                bar = progress.add_task('', total=len(runs), completed=len(runs) - len(left))

                def report(run: Run, result: dict | None, reason: list[str]) -> None:
                    progress.print(
                        outcome(run, result, reason), markup=False, highlight=False, soft_wrap=True
                    )
                    if result is None:
                        failed.append(run)
                    progress.update(bar, advance=result is not None, description=failures(failed))
                    write()

                pool = Pool(TRAIN, args.jobs or max(len(gpus), 1), gpus, report)
                used = time.monotonic() - start
                pool.train(left, None if args.limit is None else max(args.limit - used, 0))
    finally:  # also where it is interrupted
        rows = finished(study, runs)
        for table in tables(study, rows):
            console.print(table)
        if rows:
            plot_scores(study, rows, out / f'{study.name}.png')
        console.print(f'{out / study.name}.csv and .png: {len(rows)} of {len(runs)} runs')
    if missing := len(runs) - len(rows):
        of_these = f'{len(failed)} of them failed, as told above' if failed else 'none failed'
        raise DataError(f'{missing} of {len(runs)} runs are missing, {of_these}; {WAY_OUT}')


def resolve(config: Path, options: list[str]) -> dict:
    """Returns all settings of a config with options, after a check of these."""
    return read_config(str(config), options).to_dict()


def prepare(study: Study) -> None:
    """Runs what the study needs before its trainings."""
    for tool, *arguments in study.prepare:
        done = subprocess.run([sys.executable, TOOLS / tool, *arguments], env=environment())
        if done.returncode:
            raise DataError(
                f'study {study.name}: its preparation failed: {shlex.join([tool, *arguments])}'
            )


def outcome(run: Run, result: dict | None, reason: list[str]) -> str:
    """Says in a line what came out of a run, or in several why nothing did."""
    if result is None:
        return '\n'.join([f'{run.name} failed:', *(f'    {line}' for line in reason)])
    if result['nan']:
        return f'{run.name}: diverged'
    scores = ', '.join(f'{name} {result[name]:.3f}' for name in run.task.scores)
    return f'{run.name}: {scores}, loss {result["loss"]:.3f}, {result["seconds"]:.0f} s'


def failures(failed: list[Run]) -> str:
    return f'{len(failed)} failed' if failed else ''


def interrupt(*_) -> None:
    raise KeyboardInterrupt


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, interrupt)
    try:
        run_reporting_errors(main)
    except KeyboardInterrupt:
        sys.exit(f'interrupted; {WAY_OUT}')
