"""Stands for tools/train.py: logs and checkpoints as it does, in no time, and breaks when told to.

BREAK=HOW@STEP:PART in the environment breaks the runs that have PART in their folder's name: 'kill'
kills the process before that step, 'late' after the last checkpoint, 'hang' waits for ever, 'nan'
and 'error' end it as such trainings end.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
import threading
from pathlib import Path

STEPS = 4

parser = argparse.ArgumentParser()
parser.add_argument('config')
parser.add_argument('--work-dir', type=Path)
parser.add_argument('--resume', action='store_true')
parser.add_argument('--cfg-options', nargs='+')
args = parser.parse_args()
options = dict(option.split('=', 1) for option in args.cfg_options)

how, _, rest = os.environ.get('BREAK', '').partition('@')
at, _, part = rest.partition(':')
breaks = how and part in str(args.work_dir)
pointer = args.work_dir / 'last_checkpoint'
step, state = 0, 0.0
if args.resume and pointer.exists():
    step, state = json.loads(Path(pointer.read_text()).read_text())
elif 'load_from' in options:
    state = json.loads(Path(options['load_from']).read_text())[1]
log = args.work_dir / f'start{len([*args.work_dir.glob("start*")])}' / 'vis_data' / 'scalars.json'
log.parent.mkdir(parents=True)
print('threads', os.environ['OMP_NUM_THREADS'], 'gpu', os.environ['CUDA_VISIBLE_DEVICES'])


def write(**record) -> None:
    with log.open('a') as file:
        file.write(json.dumps(record) + '\n')


while step < STEPS:
    step += 1
    if breaks and int(at) == step:
        if how == 'kill':
            os.kill(os.getpid(), signal.SIGKILL)
        if how == 'hang':
            threading.Event().wait()
        if how == 'nan':
            sys.exit(f'error: the loss is not finite at iteration {step}: loss nan; no checkpoint')
        if how == 'error':
            raise RuntimeError('out of memory')
    text = f'{options["model.width"]} {options["randomness.seed"]} {step} {state}'
    state = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32
    write(step=step, loss=state, time=0.5 * step, memory=100 * step)
    path = args.work_dir / f'iter_{step}.pth'
    path.write_text(json.dumps([step, state]))
    pointer.write_text(str(path))
    if step == STEPS:
        if breaks and how == 'late':
            os.kill(os.getpid(), signal.SIGKILL)
        write(step=step, mIoU=100 * state)
