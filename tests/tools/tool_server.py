"""Runs tools in forks of one process that has imported what they need.

Each run is a process of its own, as from the command line, but starts seconds sooner. A job is a
line of JSON on standard input; the answer is a line with the exit status of the run, negative for
the number of the signal that ended it.
"""
# ruff: noqa: F401

import json
import os
import runpy
import signal
import sys

import kat_mm  # brings mmcv's ops

# isort: split
import mmdet.datasets
import mmdet.engine
import mmdet.evaluation
import mmdet.models
import mmengine.config.config
import mmseg.datasets
import mmseg.engine
import mmseg.evaluation
import mmseg.models

LIMIT = 120  # seconds

# mmengine formats the config for its log and for every checkpoint; of a short run that would be
# most of the time. What is left is valid Python, on long lines.
mmengine.config.config.FormatCode = lambda text, **style: (text, True)


def become(job: dict) -> None:
    """Takes on the arguments, environment, folder and output files of a job."""
    signal.alarm(LIMIT)
    os.chdir(job['cwd'])
    os.environ.update(job['env'])
    sys.argv = job['argv']
    nowhere = os.open(os.devnull, os.O_RDONLY)
    for number, target in enumerate((nowhere, *(os.open(p, os.O_WRONLY) for p in job['output']))):
        os.dup2(target, number)


def main() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        if (run := os.fork()) == 0:
            become(job)
            runpy.run_path(sys.argv[0], run_name='__main__')
            return
        print(os.waitstatus_to_exitcode(os.waitpid(run, 0)[1]), flush=True)


main()
