"""Runs tools in forks of one process that has imported what they need.

Each run is a process of its own, as from the command line, but starts seconds sooner. A job is a
line of JSON on standard input; the answer is a line with the exit status of the run, negative for
the number of the signal that ended it.
"""
# ruff: noqa: E402, F401

import gc
import json
import os
import runpy
import signal
import sys
import traceback
import warnings
from contextlib import suppress

# Packages may print as they are imported: only answers go where answers are read.
answers = os.fdopen(os.dup(1), 'w')
os.dup2(2, 1)

for kind in (DeprecationWarning, FutureWarning):  # as .pytest.ini has it
    warnings.filterwarnings('error', category=kind, module=r'kat_mm|mmcv\._ext|__main__')

import kat_mm.openmmlab  # brings mmcv's ops

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
    os.setsid()
    signal.alarm(LIMIT)
    os.chdir(job['cwd'])
    os.environ.update(job['env'])
    sys.argv = job['argv']
    nowhere = os.open(os.devnull, os.O_RDONLY)
    for number, target in enumerate((nowhere, *(os.open(p, os.O_WRONLY) for p in job['output']))):
        os.dup2(target, number)


def run() -> int:
    """Runs the tool and returns its exit status."""
    try:
        runpy.run_path(sys.argv[0], run_name='__main__')
    except SystemExit as end:
        if not isinstance(end.code, str):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    gc.freeze()  # so that the forks leave this memory alone, which they share
    for line in sys.stdin:
        job = json.loads(line)
        if (process := os.fork()) == 0:
            become(job)
            status = run()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # taking all the modules down would take longer than many a run
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        with suppress(ProcessLookupError):  # loader workers may outlive a run that was killed
            os.killpg(process, signal.SIGKILL)
        print(status, file=answers, flush=True)


main()
